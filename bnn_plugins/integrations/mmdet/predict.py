"""``bnn predict``: detections for many pictures, by several workers, in files that an interrupted run goes on with."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import multiprocessing

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp')


def predict(config: str, checkpoint: str, pictures: str, out: str, workers: int = 1, device: str = 'cpu',
            score: float = 0.05) -> int:
    """Detect in all pictures below a folder.

    Worker k appends to ``out/predictions-k.jsonl`` one line for each picture, ``{"file", "boxes", "scores", "labels"}``
    (corners in pixels), or ``{"file", "error"}`` where it cannot be read. Pictures that have a line are left out, whatever the
    number of workers was. A packed file is in memory once for all workers.

    Returns:
        the number of pictures that were new.

    Raises:
        FileNotFoundError: for a folder without pictures. ValueError: for no workers.
    """
    root, folder = Path(pictures), Path(out)
    files = sorted(str(path.relative_to(root)) for path in root.rglob('*') if path.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(f'{root} holds no picture ({", ".join(SUFFIXES)})')
    if workers < 1:
        raise ValueError(f'workers must be at least 1, but got {workers}')
    folder.mkdir(parents=True, exist_ok=True)
    done = {line['file'] for path in folder.glob('predictions-*.jsonl') for line in lines(path)}
    files = [file for file in files if file not in done]
    arguments = (config, checkpoint, root, folder, [files[k::workers] for k in range(workers)], device, score)
    if workers == 1:
        work(0, *arguments)
    elif files:
        multiprocessing.spawn(work, arguments, workers)
    return len(files)


def lines(path: Path) -> Iterator[dict]:
    """What is in a file of predictions; a line that a killed worker has not finished is cut off."""
    data = path.read_bytes()
    whole = data[:data.rfind(b'\n') + 1]
    if whole != data:
        path.write_bytes(whole)
    yield from map(json.loads, whole.splitlines())


def work(worker: int, config: str, checkpoint: str, root: Path, folder: Path, shares: list[list[str]], device: str,
         score: float) -> None:
    """The share of one worker."""
    from mmdet.apis import inference_detector, init_detector

    from ..mmengine.run import read_config
    torch.set_num_threads(max(1, torch.get_num_threads() // len(shares)))
    model = init_detector(read_config(config), checkpoint, device=device)
    with (folder / f'predictions-{worker}.jsonl').open('a') as file:
        for name in shares[worker]:
            try:
                found = inference_detector(model, str(root / name)).pred_instances
                found = found[found.scores >= score].cpu()
                line = dict(file=name, boxes=found.bboxes.tolist(), scores=found.scores.tolist(), labels=found.labels.tolist())
            except (OSError, ValueError, AttributeError) as error:  # mmcv gives None for what is no picture
                line = dict(file=name, error=f'{type(error).__name__}: {error}')
            file.write(json.dumps(line) + '\n')
            file.flush()
