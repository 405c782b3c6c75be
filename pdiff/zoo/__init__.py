"""Many fine-tuned networks, fast: training them (`finetune`), keeping them (`store`), a whole zoo (`build`)."""
