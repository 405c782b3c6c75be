"""Many fine-tuned networks, fast: training them (`finetune`), keeping them (`store`), building a whole zoo (`build`)."""
