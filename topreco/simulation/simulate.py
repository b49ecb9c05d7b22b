"""Blocks of events, worker processes, resuming and the final file."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Self, cast

import awkward as ak
import numpy as np
import uproot
from numpy.typing import NDArray

from topreco.config import SimulationConfig
from topreco.core.errors import TopRecoError
from topreco.core.files import check_outputs, complete_file, write_text
from topreco.core.progress import Advance, progress_bar
from topreco.core.threads import available_cores
from topreco.simulation import lhe
from topreco.simulation.decays import Copies, copied_events, draw_copies, find_decays, pieces, preselect
from topreco.simulation.nanoaod import nanoaod
from topreco.simulation.pileup import load_pool, overlay, prepare_pool
from topreco.simulation.pythia import (
    MAX_PYTHIA_SEED,
    PythiaEvents,
    generate,
    require_sim,
    settings,
    start_pythia,
)
from topreco.simulation.single_top import write_tw
from topreco.simulation.versions import as_version

# Events that Pythia generates, and events that the detector takes, at a time: about 40 MB of Pythia's records
# each.
_BATCH = 250
# Events with pile-up that the detector takes at a time: a hundred MB of arrays.
_PILEUP_BATCH = 50
# Relative difference of energies that are the same but for rounding.
_ENERGY_TOLERANCE = 1e-3
# Events per basket of the final file, at least.
_MERGE = 10_000
_FINGERPRINT = "config.json"


@dataclass(frozen=True)
class SimulationSummary:
    """Result of `simulate`.

    Attributes
    ----------
    output
        The file written.
    n_events
        Events in it.
    n_generated
        Events that were generated: those in it and those that a preselection left out.
    sum_weights
        Sum of the weights of all generated events.
    n_blocks
        Seeded blocks in it.
    n_resumed
        Blocks that an interrupted earlier call had finished.
    seconds
        Wall time of this call.
    events_per_second
        Hard events of this call (without resumed blocks) per second of wall time.
    """

    output: Path
    n_events: int
    n_generated: int
    sum_weights: float
    n_blocks: int
    n_resumed: int
    seconds: float
    events_per_second: float

    def __str__(self) -> str:
        left_out = "" if self.n_events == self.n_generated else f" of {self.n_generated} generated"
        return f"{self.output}: {self.n_events} events{left_out}, {self.events_per_second:.0f} hard events/s"


@dataclass(frozen=True)
class _Block:
    """One seeded block, as a worker gets it."""

    config: SimulationConfig
    index: int
    n_events: int
    part: Path
    lhe: Path | None
    pool: Path | None


@dataclass(frozen=True)
class _Generated:
    """Generated events, whether they reached the detector or not: number, sums of weights and of squares."""

    n: int = 0
    sumw: float = 0.0
    sumw2: float = 0.0

    @classmethod
    def of(cls, weight: NDArray[np.float64]) -> Self:
        """Count events of these weights, as precise as the branch `genWeight` holds them."""
        stored = weight.astype(np.float32).astype(np.float64)
        return cls(len(stored), float(stored.sum()), float((stored**2).sum()))

    def __add__(self, other: "_Generated") -> "_Generated":
        return _Generated(self.n + other.n, self.sumw + other.sumw, self.sumw2 + other.sumw2)


def simulate(
    config: SimulationConfig,
    output: Path,
    *,
    workers: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> SimulationSummary:
    """Simulate pp → tt̄ → dileptons, or another process, in a CMS-like detector, with NanoAOD's names.

    The events depend on `config` alone: each block of `config.block_size` events has its own seeds, derived
    from `config.seed` and its number. Finished blocks are kept in `<output>.parts`; an interrupted
    simulation, started again with the same arguments, continues there. `output` appears when all is done,
    and the parts disappear.

    With `config.lhe` the events of that file are showered instead, at most `config.n_events` of them,
    whatever their decays; `sqrt_s` is then that of the file, and tops or W bosons that the file leaves
    undecayed decay to anything.

    Parameters
    ----------
    config
        Process, energy, tune and numbers.
    output
        ROOT file to write.
    workers
        Number of processes; by default one for each available core.
    progress
        Show a progress bar.
    overwrite
        Replace `output` if it exists.

    Returns
    -------
    summary
        Numbers of events and blocks, and the time.

    Raises
    ------
    TopRecoError
        If the extra `sim` is missing, `output` exists and is not to be replaced, `<output>.parts` holds
        another simulation, or the Les Houches file cannot be used.
    """
    require_sim()
    started = time.monotonic()
    workers = available_cores() if workers is None else workers
    if workers < 1:
        raise TopRecoError(f"workers is {workers}; at least one is needed")
    output = output.absolute()
    if output.exists() and not overwrite:
        raise TopRecoError(
            f"{output} exists already: remove it, choose another name or request to overwrite it"
        )
    check_outputs([output], [config.lhe])
    n_events = config.n_events
    if config.lhe is not None:
        if not config.lhe.is_file():
            raise TopRecoError(f"the Les Houches file {config.lhe} (simulation.lhe) does not exist")
        n_events = min(n_events, lhe.count_events(config.lhe))

    parts = output.with_name(output.name + ".parts")
    _open_parts(parts, config)
    n_blocks = -(-n_events // config.block_size)
    part_files = [parts / f"block-{index:06d}.parquet" for index in range(n_blocks)]
    sizes = [min(config.block_size, n_events - i * config.block_size) for i in range(n_blocks)]
    missing = [index for index, part in enumerate(part_files) if not part.exists()]
    pool = _pool(config, show=progress) if config.pileup and missing else None
    jobs = _jobs(config, parts, part_files, sizes, missing, pool)
    n_missing = sum(sizes[index] for index in missing)
    with progress_bar(
        "simulating", n_events, show=progress, unit="events", done=n_events - n_missing
    ) as advance:
        _work_through(jobs, min(workers, max(len(missing), 1)), advance)
    seconds = time.monotonic() - started

    with complete_file(output) as temporary:
        n_written, generated = _merge(part_files, temporary)
    shutil.rmtree(parts)
    return SimulationSummary(
        output=output,
        n_events=n_written,
        n_generated=generated.n,
        sum_weights=generated.sumw,
        n_blocks=n_blocks,
        n_resumed=n_blocks - len(missing),
        seconds=time.monotonic() - started,
        events_per_second=n_missing / seconds,
    )


# ---- one block -------------------------------------------------------------------------------------------


def block_seeds(seed: int, block: int) -> tuple[int, np.random.Generator]:
    """Seeds of one block.

    Pythia's seeds of successive blocks are successive numbers after a random start, so that no two blocks
    share one; random seeds out of Pythia's 9·10⁸ would collide now and then and repeat events.

    Parameters
    ----------
    seed
        Seed of the simulation.
    block
        Number of the block.

    Returns
    -------
    pythia_seed
        Seed of Pythia, 1 to 900 000 000.
    rng
        Source of randomness of the detector.
    """
    start = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    pythia_seed = 1 + (start + block) % MAX_PYTHIA_SEED
    return pythia_seed, np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(block,)))


def _simulate_block(block: _Block) -> int:
    """Generate, reconstruct and save one block; return the number of hard events requested."""
    config = block.config
    pythia_seed, rng = block_seeds(config.seed, block.index)
    # The decays have random numbers of their own.
    decay_rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(block.index, 1)))
    external = block.lhe
    if config.process == "tw":
        external = block.part.with_suffix(".lhe")
        write_tw(settings(config, pythia_seed), config, block.n_events, pythia_seed, external)
    pythia = start_pythia(settings(config, pythia_seed, external=external is not None), external)
    batches = []
    generated = _Generated()
    detector_batch = _BATCH if block.pool is None else _PILEUP_BATCH
    detect = partial(nanoaod, rng=rng) if block.pool is None else _with_pileup(block, rng)
    generator_batch = _BATCH if config.redecays else detector_batch
    first_event = block.index * config.block_size + 1
    for first in range(0, block.n_events, generator_batch):
        size = min(generator_batch, block.n_events - first)
        events = generate(pythia, size, refill=external is None)
        if not len(events):
            continue
        if config.redecays:
            found, n = _redecayed(events, config, decay_rng, detect, first_event, detector_batch)
            batches += found
            generated += n
        else:
            number = {"event": np.arange(len(events), dtype=np.uint64) + np.uint64(first_event)}
            batches.append(number | detect(events))
            generated += _Generated.of(events.weight)
        first_event += len(events)
    if not batches:
        raise TopRecoError(f"Pythia could shower none of the {block.n_events} events of block {block.index}")
    branches = {name: ak.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    if config.nanoaod_version is not None:
        branches = as_version(branches, config.nanoaod_version)
    n_events = len(branches["genWeight"])
    identity = {
        "run": np.ones(n_events, np.uint32),
        "luminosityBlock": np.full(n_events, block.index + 1, np.uint32),
    }
    # First, because the part itself is the sign of a finished block.
    write_text(_sums_file(block.part), json.dumps(asdict(generated)))
    with complete_file(block.part) as temporary:
        ak.to_parquet(ak.zip(identity | branches, depth_limit=1), temporary, extensionarray=False)
    if external is not None:
        external.unlink()
    return block.n_events


def _redecayed(
    events: PythiaEvents,
    config: SimulationConfig,
    decay_rng: np.random.Generator,
    detect: Callable[[PythiaEvents], dict[str, Any]],
    first_event: int,
    detector_batch: int,
) -> tuple[list[dict[str, Any]], _Generated]:
    """Branches of the copies of generated events that pass the preselection, and the sums of all copies."""
    decays = find_decays(events)
    all_copies, accepted = draw_copies(events, decays, config, decay_rng)
    copies = all_copies[accepted]
    generated = _Generated.of(events.weight[copies.hard_event])
    if config.preselection is not None:
        copies = copies[preselect(events, decays, copies, config.preselection)]

    def detected(piece: Copies) -> dict[str, Any]:
        number = {
            "event": piece.hard_event.astype(np.uint64) + np.uint64(first_event),
            "decayCopy": piece.number.astype(np.uint16),
        }
        return number | detect(copied_events(events, decays, piece))

    if len(copies):
        return [detected(piece) for piece in pieces(copies, detector_batch)], generated
    # The empty branches of an event, so that a file in which nothing passes has all of them.
    return [{name: column[:0] for name, column in detected(all_copies[:1]).items()}], generated


def _with_pileup(block: _Block, rng: np.random.Generator) -> Callable[[PythiaEvents], dict[str, Any]]:
    """The detector with additional collisions, which have random numbers of their own."""
    config = block.config
    pileup_rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(block.index, 2)))
    pool = load_pool(cast(Path, block.pool))

    def detect(events: PythiaEvents) -> dict[str, Any]:
        sqrt_s = float(events.p4[events.offsets[0], 0])
        if abs(sqrt_s - config.sqrt_s) > _ENERGY_TOLERANCE * config.sqrt_s:
            raise TopRecoError(
                f"sqrt_s is {config.sqrt_s:g}, but the events of {config.lhe} have {sqrt_s:g} GeV; "
                "additional collisions need the same energy"
            )
        return nanoaod(events, rng, overlay(pool, config.pileup, len(events), pileup_rng))

    return detect


def _sums_file(part: Path) -> Path:
    """File with the sums of the generated events of a block."""
    return part.with_suffix(".json")


# ---- all blocks ------------------------------------------------------------------------------------------


def _pool(config: SimulationConfig, *, show: bool) -> Path:
    """File with the pool of minimum-bias events, made before the workers need it."""
    with progress_bar("minimum-bias events", config.pileup_pool, show=show, unit="events") as advance:
        return prepare_pool(config, advance)


def _jobs(
    config: SimulationConfig,
    parts: Path,
    part_files: list[Path],
    sizes: list[int],
    missing: list[int],
    pool: Path | None,
) -> Iterator[_Block]:
    """Missing blocks; those of a Les Houches file are cut out of it just before they are needed."""
    if config.lhe is None:
        for index in missing:
            yield _Block(config, index, sizes[index], part_files[index], None, pool)
        return
    wanted = set(missing)
    for index, text in enumerate(lhe.split(config.lhe, config.block_size)):
        if index == len(part_files):
            return
        if index in wanted:
            path = parts / f"block-{index:06d}.lhe"
            path.write_text(text, encoding="utf-8")
            yield _Block(config, index, sizes[index], part_files[index], path, pool)


def _work_through(jobs: Iterator[_Block], workers: int, advance: Advance) -> None:
    """Simulate the blocks, in this process if there is to be only one."""
    if workers == 1:
        for job in jobs:
            advance(_simulate_block(job))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as executor:
        pending: set[Future[int]] = set()
        try:
            # One waiting job for each worker keeps them busy and few Les Houches blocks on disk.
            pending |= {executor.submit(_simulate_block, job) for job in islice(jobs, 2 * workers)}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                pending |= {executor.submit(_simulate_block, job) for job in islice(jobs, len(done))}
                for future in done:
                    advance(future.result())
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    """Leave interrupts to the parent, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# ---- files -----------------------------------------------------------------------------------------------


def _open_parts(parts: Path, config: SimulationConfig) -> None:
    """Create the folder of finished blocks, or check that it belongs to this simulation."""
    content = config.model_dump(mode="json", exclude={"pileup_cache"})
    if config.lhe is not None:
        with config.lhe.open("rb") as file:
            content["lhe"] = hashlib.file_digest(file, "sha256").hexdigest()
    content |= {package: version(package) for package in ("topreco", "pythia8mc", "fastjet")}
    fingerprint = parts / _FINGERPRINT
    if fingerprint.exists():
        found = json.loads(fingerprint.read_text(encoding="utf-8"))
        different = sorted(key for key in content | found if content.get(key) != found.get(key))
        if different:
            raise TopRecoError(
                f"{parts} holds blocks of another simulation: {', '.join(different)} differ. "
                "Finish that one, choose another output or remove the folder"
            )
        return
    if parts.exists() and any(parts.iterdir()):
        raise TopRecoError(
            f"{parts} exists and was not made by topreco simulate: choose another output or remove it"
        )
    parts.mkdir(parents=True, exist_ok=True)
    write_text(fingerprint, json.dumps(content, indent=2))


def _merge(part_files: list[Path], output: Path) -> tuple[int, _Generated]:
    """Stream the blocks into one ROOT file; return the number of its events and the sums of the generated."""
    count = 0
    generated = _Generated()
    for part in part_files:
        generated += _Generated(**json.loads(_sums_file(part).read_text(encoding="utf-8")))
    with uproot.recreate(output) as file:
        group: list[Any] = []
        tree: Any = None
        for i, part in enumerate(part_files):
            group.append(ak.from_parquet(part))
            if sum(map(len, group)) < _MERGE and i + 1 < len(part_files):
                continue
            events = ak.concatenate(group)
            group = []
            branches = {name: events[name] for name in events.fields}
            if tree is None:
                # Not by assignment, which may write an RNTuple.
                tree = file.mktree("Events", {name: array.type.content for name, array in branches.items()})
            tree.extend(branches)
            count += len(events)
        sums: dict[str, NDArray[Any]] = {
            "run": np.array([1], np.uint32),
            "genEventCount": np.array([generated.n], np.int64),
            "genEventSumw": np.array([generated.sumw]),
            "genEventSumw2": np.array([generated.sumw2]),
        }
        file.mktree("Runs", {name: value.dtype for name, value in sums.items()}).extend(sums)
    return count, generated
