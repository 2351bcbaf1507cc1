"""Say in lines of text how a run goes, in the words of open_clip's trainer: scripts that read its logs read ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_NOT_WATCHED = ("clip_val_loss", "num_samples")  # of an evaluation, by people at a terminal


def train_line(
    label: str, epoch: int, done: int, pairs: int, figures: Mapping[str, float], average: float | None = None
) -> str:
    """Return a line about a step.

    Args:
        label: "Train", or what else is trained.
        epoch: passes completed.
        done: pairs of this epoch that have been seen, of all ranks.
        pairs: of an epoch.
        figures: of the metrics file, "train/…".
        average: of the loss since the start of the epoch; the loss itself without it.
    """
    loss = figures["train/loss"]
    told = f"{loss:#.5g} ({loss if average is None else average:#.5g})"
    line = (
        f"{label} Epoch: {epoch} [{done:>{len(str(pairs))}}/{pairs} ({100 * done / pairs:.0f}%)] "
        f"Data (t): {figures['train/data_time']:.3f} Batch (t): {figures['train/batch_time']:.3f}, "
        f"{figures['train/samples_per_second']:#g}/s, {figures['train/samples_per_second_per_gpu']:#g}/s/gpu "
        f"LR: {figures['train/lr']:5f} Logit Scale: {figures['train/scale']:.3f} "
        f"Contrastive_loss: {told} Loss: {told}"  # the loss has this one part
    )
    skipped = {"pairs": figures.get("train/skipped_pairs", 0), "steps": figures.get("train/skipped_steps", 0)}
    counts = " ".join(f"{what}: {count:.0f}" for what, count in skipped.items() if count)
    return f"{line} Skipped {counts}" if counts else line


def eval_line(
    epoch: float, metrics: Mapping[str, float], name: str | None = None, *, brief: bool = False
) -> str:
    """Return a line about an evaluation.

    Args:
        epoch: passes completed, with a fraction inside one.
        metrics: figure by key, without "val/".
        name: of the test, where a run has several.
        brief: for people who watch: recalls in one go, no ranks, no loss.
    """
    if brief:
        figures = "  ".join(_brief(metrics))
    else:
        figures = "\t".join(f"{key}: {value:.4f}" for key, value in metrics.items())
    gap = "  " if brief else "\t"
    return f"Eval Epoch: {round(epoch, 2):g} " + (f"{name}{gap}" if name else "") + figures


def _brief(metrics: Mapping[str, float]) -> Iterator[str]:
    directions = {"image_to_text": "image to text", "text_to_image": "text to image"}
    for key, words in directions.items():
        recalls = [(k, metrics[f"{key}_R@{k}"]) for k in (1, 5, 10) if f"{key}_R@{k}" in metrics]
        if recalls:
            yield f"{words} R@{'/'.join(str(k) for k, _ in recalls)} " + " ".join(
                f"{v:.3f}" for _, v in recalls
            )
    for key, value in metrics.items():
        if not key.startswith((*directions, *_NOT_WATCHED)):
            yield f"{key} {value:.3f}"
