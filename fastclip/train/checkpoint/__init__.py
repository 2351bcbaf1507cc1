"""Save a run so that it continues bit for bit, and so that a crash at any moment leaves the last save intact.

A checkpoint is a folder, complete from the moment it has its name:

    checkpoints/step_00000600/
        model.safetensors       the model's state dict
        ema.safetensors         the averaged weights under the same names, of a run that has them
        training.safetensors    optimizer.<parameter>.<slot>, rng.rank<k>.<generator>
        state.json              step, epoch, position, scaler, counters; the model's config
        run.yaml                the run's settings, for `--config`
        manifest.json           sizes and SHA-256 of the others, config, world size, versions, its own digest

`write` puts it aside, flushes it to the disk, reads it back, and only then gives it its name; old ones go after
that. `read` believes no byte that the manifest does not vouch for: a flipped bit loads without complaint in every
tensor format. Tensors are safetensors and the rest is JSON: reading a checkpoint runs no code from it, so one from
a stranger is only data. The learning rate is a function of the step, so there is no scheduler to keep.

With several ranks every function is called by all of them. One folder holds the whole run: rank 0 writes it, with
sharded tensors put together, and it can be resumed on any number of ranks.
"""

from fastclip.train.checkpoint.manifest import CheckpointError, NoCheckpoint, verify
from fastclip.train.checkpoint.read import Checkpoint, find, load, read_config
from fastclip.train.checkpoint.restore import restore
from fastclip.train.checkpoint.write import save

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "NoCheckpoint",
    "find",
    "load",
    "read_config",
    "restore",
    "save",
    "verify",
]
