"""What the server of `children` imports once: all that a run needs, and no device started."""

import gc

import matplotlib.pyplot  # noqa: F401
import sklearn.datasets  # noqa: F401
import tensorboardX  # noqa: F401

import pdiff.ask.commands  # noqa: F401
import pdiff.imports.zoo  # noqa: F401
import pdiff.main  # noqa: F401
import pdiff.run  # noqa: F401

gc.freeze()  # what is imported stays, in every child
gc.set_threshold(100_000)
