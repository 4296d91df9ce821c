"""Every model of the hosts, made binary: ``python -m benchmarks.zoo.run mmdet|diffusers|pipelines [names] --minutes M``.

A process for each model and way, with a limit of time and memory, goes through the stages of :mod:`.stages` on small random
inputs. One row per model in ``results/<host>.csv``; what has a row of this commit is skipped (with ``--missing``: of any
commit), so that the command can be called again until it is done. ``docs/models.md`` shows the rows
(``python -m benchmarks.tables``).
"""

import argparse
import multiprocessing
import resource
import signal
import tempfile
import time
import warnings
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import bnn_plugins  # noqa: F401  (before mmdet: it provides what an mmcv without compiled operators lacks)
from bnn_plugins.analysis.machine import commit, installed

from ..rows import read_rows, write_row
from .stages import run, sentence
from .tables import OK, SKIPPED, stages_of

RESULTS = Path(__file__).parent / 'results'
HOSTS = {'mmdet': 'onedl-mmdetection', 'diffusers': 'diffusers', 'pipelines': 'diffusers'}
KEYS = ('name', 'way')
FACTS = ('config', 'layers', 'binary', 'replaced', 'wrong', 'traced', 'fusion')
PATIENCE = 10  # times as long as a model may compute, on a machine that others use, too
FORK = multiprocessing.get_context('fork')


def host(name: str):
    """``names()``, ``WAYS`` and ``case(name, way)`` of a host."""
    return import_module(f'{__package__}.{name}_models')


def child(name: str, model: str, way: str, seconds: float, gigabytes: float, say: Connection) -> None:
    """Run one case in this process; each stage is said at once, for the next one may never end."""
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))  # however busy the machine is
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')
    facts, start = {}, time.process_time()
    with tempfile.TemporaryDirectory() as folder, host(name).small_networks():
        try:
            case = host(name).case(model, way, facts)
        except LookupError as error:
            say.send({'way': str(error.args[0])})
            return
        except Exception as error:
            say.send({'float': sentence(error)})
            return
        for stage, said in getattr(host(name), 'run', run)(case, Path(folder), facts):
            say.send({stage: said, **facts, 'seconds': f'{time.process_time() - start:.0f}'})


def run_case(name: str, model: str, way: str, seconds: float, gigabytes: float) -> dict[str, str]:
    """The row of one case, run in a process of its own, which has the imports of this one."""
    start, found, stages = time.monotonic(), {}, stages_of(name)
    hear, say = FORK.Pipe(duplex=False)
    process = FORK.Process(target=child, args=(name, model, way, seconds, gigabytes, say))
    process.start()
    say.close()
    try:
        while hear.poll(max(start + PATIENCE * seconds - time.monotonic(), 0)):
            found |= hear.recv()
        process.kill()
    except EOFError:
        pass
    process.join()
    row = {'name': model, 'way': way, **{fact: found.get(fact, '') for fact in getattr(host(name), 'FACTS', FACTS)}}
    row |= {stage: found.get(stage, SKIPPED) for stage in stages}
    if 'way' in found:
        row['float'] = f'no such way: {found["way"]}'
    elif process.exitcode:
        late = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        said = f'takes more than {seconds:.0f} s' if late else f'the process ended with {process.exitcode}'
        row[next((stage for stage in stages if stage not in found), stages[-1])] = said
    return row | {'seconds': found.get('seconds', ''), 'host': installed(HOSTS[name]), 'commit': commit()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('host', choices=HOSTS)
    parser.add_argument('names', nargs='*', help='families of mmdet, classes or pipelines of diffusers; default all')
    parser.add_argument('--ways', nargs='+', help='how a model becomes binary; default all ways of the host')
    parser.add_argument('--minutes', type=float, default=600, help='start no model after this time; default %(default)s')
    parser.add_argument('--seconds', type=float, default=120, help='of the processor for one model; default %(default)s')
    parser.add_argument('--gigabytes', type=float, default=8, help='memory limit for one model; default %(default)s')
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--again', action='store_true', help='also what has a row of this commit')
    which.add_argument('--missing', action='store_true', help='only what has no row of any commit')
    parser.add_argument('--out', type=Path, default=RESULTS, help='folder of the CSV files; default %(default)s')
    args = parser.parse_args()
    models, end = host(args.host), time.monotonic() + 60 * args.minutes
    known, path = models.names(), args.out / f'{args.host}.csv'
    for name in args.names:
        if name not in known:
            parser.error(f'the installed {args.host} has no {name!r}; it has {", ".join(known)}')
    here = commit()
    for way in args.ways or models.WAYS:
        for name in args.names or known:
            done = {(row['name'], row['way']) for row in read_rows(path)
                    if args.missing or (row['commit'] == here and not args.again)}
            if (name, way) in done:
                continue
            if time.monotonic() > end:
                return
            row = run_case(args.host, name, way, args.seconds, args.gigabytes)
            write_row(path, row, KEYS, lambda r: (r['name'].lower(), r['way']))
            failed = '; '.join(f'{stage}: {row[stage]}' for stage in stages_of(args.host) if row[stage] not in (OK, SKIPPED))
            print(f'{name} {way} {row["seconds"]} s: {failed or "all ok"}', flush=True)


if __name__ == '__main__':
    main()
