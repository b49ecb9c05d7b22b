"""Templates of a fit from the histograms of a run: processes, their variations, and what is wrong with them.

Under- and overflow belong to the first and last bin; those of unrolled pairs, which have no place there, are
left out. A process is scaled by cross section times luminosity over the sum of its generated weights.

With a response matrix the signal becomes one process for each bin of the truth, whose factors are the
unfolded spectrum relative to the simulated one. Its variations are divided by those of the generated spectrum
of that bin: what changes is acceptance, efficiency and migration, not the cross section that is measured.
Selected events from outside of the bins (NAME_outside) and fakes (NAME_fakes) are backgrounds.
"""

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import hist
import numpy as np

from topreco.config import NOMINAL, NuisanceConfig, TemplatesConfig, combine_name
from topreco.core.errors import TopRecoError, nearest
from topreco.core.events import CHANNELS
from topreco.core.observables import OBSERVABLES
from topreco.core.statistics import Array
from topreco.evaluation.histograms import N_GROWING, cells
from topreco.evaluation.pairs import bin_ranges, unrolled_of
from topreco.evaluation.report import UNDEFINED, format_estimate
from topreco.evaluation.summary import ALL_CHANNELS
from topreco.measurement.unfolding import Sums, read_response

_PB_PER_FB = 1e-3
_CHOICES = {"subset": "all", "source": "reco"}
"""Categories that templates are taken from, by axis."""

Channelwise = dict[str, Sums]
"""Contents by name of the channel, shape (m,)."""


class Axis(NamedTuple):
    """An axis of the templates: text of the quantity, and edges of its bins."""

    label: str
    edges: Array


@dataclass(frozen=True)
class Process:
    """Templates of one process, scaled to the luminosity.

    Attributes
    ----------
    name
        Its name.
    signal
        True if a strength that is to be measured multiplies it.
    nominal
        Expected events by channel. Channels without a positive sum are not there.
    shapes
        By nuisance, events of up and down, by channel; those that differ from nominal.
    rates
        By nuisance, factors of down and up.
    rate_parameter
        Range of a free factor, None if there is none.
    expected
        Of a truth bin of the signal, the simulated cross section in pb; None for others.
    """

    name: str
    signal: bool
    nominal: Channelwise
    shapes: dict[str, tuple[Channelwise, Channelwise]] = field(default_factory=dict)
    rates: dict[str, tuple[float, float]] = field(default_factory=dict)
    rate_parameter: tuple[float, float] | None = None
    expected: float | None = None


@dataclass(frozen=True)
class Templates:
    """All that a fit needs.

    Attributes
    ----------
    histogram, method
        What was taken from the run.
    axes
        Axes of the templates; several are unrolled, the last one fastest.
    truth
        Axes of the truth bins, for unfolding; empty else.
    channels
        Names of the channels.
    processes
        Signals first.
    data
        Events by channel, shape (m,); the sum of the processes if `is_data` is False.
    is_data
        True if data were given.
    shape_nuisances, rate_nuisances
        Names, without those that change nothing.
    unused
        Variations of the run that belong to no nuisance.
    remarks
        What a reader should know: empty and negative bins, processes left out.
    """

    histogram: str
    method: str
    axes: tuple[Axis, ...]
    truth: tuple[Axis, ...]
    channels: tuple[str, ...]
    processes: tuple[Process, ...]
    data: dict[str, Array]
    is_data: bool
    unused: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def unfolds(self) -> bool:
        """True if the signal has one process for each bin of the truth."""
        return bool(self.truth)

    @property
    def shape_nuisances(self) -> list[str]:
        """Nuisances of templates, in order of appearance."""
        return list(dict.fromkeys(name for process in self.processes for name in process.shapes))

    @property
    def rate_nuisances(self) -> list[str]:
        """Nuisances of rates, in order of appearance."""
        return list(dict.fromkeys(name for process in self.processes for name in process.rates))


def axis_text(axes: Sequence[Axis]) -> str:
    """Axes as text: quantity and edges, one after the other."""
    return "; ".join(f"{axis.label}: {', '.join(f'{edge:g}' for edge in axis.edges)}" for axis in axes)


# ---- building --------------------------------------------------------------------------------------------


def build_templates(results: Mapping[str, Any], config: TemplatesConfig) -> Templates:
    """Templates of a run.

    Parameters
    ----------
    results
        Results of `topreco.runs.results.load_results`.
    config
        Which histogram, and what it is a template of.

    Raises
    ------
    TopRecoError
        If something is missing in the results, a channel has no events, or a bin no positive expectation.
    """
    return _Builder(results, config).build()


class _Nuisance(NamedTuple):
    """A nuisance of templates: variations, and how they become up and down."""

    name: str
    variations: tuple[str, ...]
    combination: str
    processes: tuple[str, ...] | None


class _Builder:
    """Reads the results, each histogram once per process and variation."""

    def __init__(self, results: Mapping[str, Any], config: TemplatesConfig) -> None:
        self.config = config
        self.histograms: Mapping[str, hist.Hist] = results["histograms"]
        self.cutflow = results.get("cutflow", {})
        self.kept = results.get("metadata", {}).get("kept", {})
        kind, _, observable = config.histogram.partition("/")
        self.observable = observable if kind == "response" else None
        key = f"measured/{observable}" if kind == "response" else config.histogram
        if key not in self.histograms:
            kinds = dict.fromkeys(name.partition("/")[0] for name in self.histograms)
            same = [name for name in self.histograms if name.startswith(f"{key.partition('/')[0]}/")]
            raise TopRecoError(
                f"histogram {config.histogram!r}: not in these results{nearest(key, self.histograms)}; "
                f"there are: {', '.join(same or (f'{kind}/…' for kind in kinds))}"
            )
        self.histogram = self.histograms[key]
        self._check_histogram()
        self.method = self._chosen_method()
        self.read_axes = tuple(axis for axis in self.histogram.axes[N_GROWING:] if not _is_category(axis))
        self.groups, axes = self._binning()
        self.axes = unrolled_axes(self.read_axes[0]) or axes
        suffix = "" if config.year is None else f"_{config.year}"
        self.channels = {f"{channel}{suffix}": channel for channel in config.channels}
        self._check_config()

    def _check_histogram(self) -> None:
        for axis in self.histogram.axes[N_GROWING + 1 :]:
            if _is_category(axis) and axis.name not in _CHOICES:
                raise TopRecoError(
                    f"histogram {self.config.histogram!r}: an axis {axis.name!r}, which no template has; "
                    "take spectrum/…, measured/…, response/…, joint/… or migration/…"
                )
        if not self.weighted and "subset" not in self.histogram.axes.name:
            raise TopRecoError(
                f"histogram {self.config.histogram!r}: no sums of squared weights, which templates need"
            )

    def _chosen_method(self) -> str:
        known = list(self.histogram.axes["method"])
        if self.config.method is None and len(known) == 1:
            return str(known[0])
        if self.config.method is None or self.config.method not in known:
            found = "none given" if self.config.method is None else repr(self.config.method)
            raise TopRecoError(f"method: {found}; one of {', '.join(known)} expected")
        return self.config.method

    def _binning(self) -> tuple[list[list[int]], tuple[Axis, ...]]:
        """Starts of the groups of bins, with flow, of each axis, and the axes of the templates."""
        wanted = self.config.edges
        if wanted is not None and any(map(unrolled_axes, self.read_axes)):
            raise TopRecoError(f"edges: {self.config.histogram!r} is unrolled already and keeps its bins")
        several: Sequence[Any] = [None] * len(self.read_axes) if wanted is None else wanted
        if len(several) != len(self.read_axes):
            raise TopRecoError(
                f"edges: lists for {len(several)} axes found, {self.config.histogram!r} has "
                f"{len(self.read_axes)}"
            )
        groups, axes = [], []
        for axis, edges in zip(self.read_axes, several, strict=True):
            fine = np.asarray(axis.edges)
            chosen = fine if edges is None else np.asarray(edges, float)
            # Edges of a regular axis are rounded.
            place = np.abs(fine[:, None] - chosen).argmin(axis=0)
            off = ~np.isclose(fine[place], chosen, rtol=1e-9, atol=1e-9 * float(np.ptp(fine)))
            if off.any():
                raise TopRecoError(
                    f"edges: {chosen[off][0]:g} is none of the edges of {self.config.histogram!r}, which are "
                    f"{', '.join(f'{edge:g}' for edge in fine)}"
                )
            # Whatever lies before the second edge chosen is in the first bin, under- and overflow included.
            groups.append([0, *(place[1:-1] + 1).tolist()])
            axes.append(Axis(self._label(axis), fine[place]))
        return groups, tuple(axes)

    def _label(self, axis: Any) -> str:
        """Text of an axis: the name of the observable in the key of the histogram, and its unit."""
        name = self.config.histogram.partition("/")[2]
        if name not in OBSERVABLES:
            return str(axis.label or axis.name)
        return _text(name) if len(self.read_axes) == 1 else f"{axis.name} {_text(name)}"

    def _check_config(self) -> None:
        config = self.config
        datasets = list(self.histogram.axes["dataset"])
        if not config.processes:
            raise TopRecoError(
                "processes: none given; the datasets of this run to make them of are: " + ", ".join(datasets)
            )
        if config.luminosity is None:
            raise TopRecoError("luminosity: not given; the integrated luminosity in fb⁻¹ expected")
        named = {
            d: f"processes.{p}.datasets" for p, about in config.processes.items() for d in about.datasets
        }
        every = [dataset for about in config.processes.values() for dataset in about.datasets]
        if twice := [dataset for dataset in every if every.count(dataset) > 1]:
            raise TopRecoError(f"processes: {twice[0]!r} belongs to two of them; one expected")
        for dataset, key in (named | dict.fromkeys(config.data, "data")).items():
            if dataset not in datasets:
                raise TopRecoError(
                    f"{key}: {dataset!r} is not in these results{nearest(dataset, datasets)}; there are: "
                    f"{', '.join(datasets)}"
                )
            if key == "data" and dataset in named:
                raise TopRecoError(f"data: {dataset!r} is a dataset of {named[dataset]}, too")

    # ---- contents

    def scale(self, process: str, dataset: str) -> float:
        """Factor from the sum of weights to the expected number of events."""
        total = self.config.sum_of_weights.get(dataset)
        if total is None:
            kept = self.kept.get(dataset)
            if kept is not None and kept["entries"] != kept["generated"]:
                raise TopRecoError(
                    f"{dataset}: the files have {kept['entries']} of {kept['generated']} generated events; "
                    f"give the sum of weights of all of them as sum_of_weights.{dataset}"
                )
            steps = self.cutflow.get(dataset)
            if not steps:
                raise TopRecoError(
                    f"{dataset}: these results have no cutflow, so give its sum of generated weights as "
                    f"sum_of_weights.{dataset}"
                )
            total = float(next(iter(steps.values()))["total"]["sumw"])
            if not total > 0:
                raise TopRecoError(f"{dataset}: sum of generated weights {total:g}, a positive one expected")
        cross_section = self.config.processes[process].datasets[dataset]
        assert self.config.luminosity is not None
        return cross_section * self.config.luminosity / _PB_PER_FB / total

    def contents(self, dataset: str, variation: str, scale: float = 1.0) -> Channelwise | None:
        """Contents of a dataset in the bins of the templates by channel; None if nothing was filled."""
        found = cells(self.histogram, dataset, self.method, variation)
        if found is None:
            return None
        if self.weighted:
            sums = found["value"], found["variance"]
        else:
            weight = self.mean_weight(dataset, variation)
            sums = found, np.abs(found) * weight.reshape(*weight.shape, *[1] * (found.ndim - weight.ndim))
        if not sums[1].any():
            return None
        for axis in self.histogram.axes[N_GROWING + 1 :]:
            if _is_category(axis):
                sums = tuple(part[:, axis.index(_CHOICES[axis.name])] for part in sums)
        return {
            name: Sums(
                *(
                    self.merged(np.asarray(_channel(part, channel))) * scale**power
                    for power, part in enumerate(sums, 1)
                )
            )
            for name, channel in self.channels.items()
        }

    @property
    def weighted(self) -> bool:
        """True if the histogram has sums of squared weights."""
        return self.histogram.storage_type is hist.storage.Weight

    def mean_weight(self, dataset: str, variation: str) -> Array:
        """Sum of squared weights over the sum of weights of solved events, shape (channel, subset)."""
        events = self.histograms["events"]
        w, ww = (
            events[dataset, self.method, variation, :, :, 0, "solved", moment].values()
            for moment in ("w", "ww")
        )
        return np.divide(ww, w, out=np.zeros_like(w), where=w > 0)

    def merged(self, values: Array) -> Array:
        """Contents with flow in the bins of the templates, unrolled."""
        for position, (axis, starts) in enumerate(zip(self.read_axes, self.groups, strict=True)):
            if unrolled_axes(axis):
                values = np.delete(values, [0, values.shape[position] - 1], axis=position)
                starts = [0, *(start - 1 for start in starts[1:])]  # noqa: PLW2901
            values = np.add.reduceat(values, starts, axis=position)
        return values.reshape(-1)

    def parts(self, process: str, variation: str) -> dict[str, Channelwise] | None:
        """Contents of the process, or of the processes that the signal is divided into, by name.

        None if a dataset lacks the variation.
        """
        about = self.config.processes[process]
        total: dict[str, Channelwise] = {}
        for dataset in about.datasets:
            scale = self.scale(process, dataset)
            if self.observable is not None and about.signal:
                found = self._divided(process, dataset, variation, scale)
            else:
                whole = self.contents(dataset, variation, scale)
                found = None if whole is None else {process: whole}
            if found is None:
                return None
            for name, channels in found.items():
                total[name] = _added(total[name], channels) if name in total else channels
        return total

    def _divided(
        self, process: str, dataset: str, variation: str, scale: float
    ) -> dict[str, Channelwise] | None:
        filled = cells(self.histogram, dataset, self.method, variation)
        if filled is None or not filled["variance"].any():
            return None
        assert self.observable is not None
        found: dict[str, Channelwise] = {}
        for name, channel in self.channels.items():
            options = {"dataset": dataset, "method": self.method, "channel": channel}
            response = read_response(self.histograms, self.observable, variation=variation, **options)
            nominal = read_response(self.histograms, self.observable, **options)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = nominal.generated.value / response.generated.value
            ratio = np.where(np.isfinite(ratio), ratio, 1.0) * scale

            def rows(where: Any, factor: Array, matrix: Sums = response.response) -> Sums:
                return Sums(
                    self.merged((matrix.value * factor[:, None])[where].sum(axis=0)),
                    self.merged((matrix.variance * factor[:, None] ** 2)[where].sum(axis=0)),
                )

            bins = {f"{process}_bin{i}": rows([i], ratio) for i in range(1, len(ratio) - 1)}
            fakes = Sums(*(self.merged(part) for part in response.fakes))
            bins[f"{process}_outside"] = rows([0, -1], np.full_like(ratio, scale))
            bins[f"{process}_fakes"] = Sums(fakes.value * scale, fakes.variance * scale**2)
            for part, contents in bins.items():
                found.setdefault(part, {})[name] = contents
        return found

    def cross_sections(self, process: str) -> dict[str, float]:
        """Simulated cross section in pb of each truth bin, by name of its process."""
        assert self.observable is not None
        assert self.config.luminosity is not None
        total: Array | float = 0.0
        for dataset in self.config.processes[process].datasets:
            generated = read_response(
                self.histograms, self.observable, dataset=dataset, method=self.method
            ).generated.value[1:-1]
            total = total + generated * self.scale(process, dataset)
        per_pb = self.config.luminosity / _PB_PER_FB
        return {f"{process}_bin{i}": float(x) / per_pb for i, x in enumerate(np.atleast_1d(total), 1)}

    # ---- nuisances

    def nuisances(self) -> tuple[list[_Nuisance], tuple[str, ...]]:
        """Nuisances of templates, and the variations that belong to none."""
        available = [
            variation
            for variation in self.histogram.axes["variation"]
            if variation != NOMINAL
            and any(
                self.contents(dataset, variation) is not None
                for about in self.config.processes.values()
                for dataset in about.datasets
            )
        ]
        found: list[_Nuisance] = []
        for name, about in self.config.nuisances.items():
            if about is None or about.rate is not None:
                continue
            found.append(self._nuisance(name, about, available))
        taken = {variation for nuisance in found for variation in nuisance.variations}
        for variation in available:
            source, _, direction = variation.rpartition("_")
            pair = (f"{source}_up", f"{source}_down")
            if direction not in ("up", "down") or source in self.config.nuisances or taken & {*pair}:
                continue
            if missing := [name for name in pair if name not in available]:
                raise TopRecoError(
                    f"variation {missing[0]!r}: not in these results, though {variation!r} is; name it as "
                    f"nuisances.{source}.up, or leave it out with nuisances.{source}: null"
                )
            found.append(_Nuisance(source, pair, "pair", None))
            taken |= {*pair}
        left_out = {
            variation
            for name, about in self.config.nuisances.items()
            if about is None
            for variation in (f"{name}_up", f"{name}_down")
        }
        unused = tuple(v for v in available if v not in taken and v not in left_out)
        for nuisance in found:
            _check_name(nuisance.name)
        return found, unused

    def _nuisance(self, name: str, about: NuisanceConfig, available: Sequence[str]) -> _Nuisance:
        key = f"nuisances.{name}"
        full = name if about.correlated else f"{name}_{self.config.year}"
        if about.members is not None:
            members = tuple(fnmatch.filter(available, about.members))
            if len(members) < 2:
                raise TopRecoError(
                    f"{key}.members: {about.members!r} fits {len(members)} variations of "
                    f"{', '.join(available) or 'none'}; two or more expected"
                )
            return _Nuisance(full, members, about.combination, about.processes)
        if about.up is not None and about.down is None:
            variations: tuple[str, ...] = (about.up,)
        else:
            variations = (about.up or f"{name}_up", about.down or f"{name}_down")
        for variation in variations:
            if variation not in available:
                raise TopRecoError(
                    f"{key}: variation {variation!r} is not in these results{nearest(variation, available)}; "
                    f"there are: {', '.join(available) or 'none'}"
                )
        return _Nuisance(full, variations, "mirror" if len(variations) == 1 else "pair", about.processes)

    # ---- all of it

    def build(self) -> Templates:
        nuisances, unused = self.nuisances()
        remarks: list[str] = []
        if not self.weighted:
            remarks.append(
                f"{self.config.histogram} has no sums of squared weights: those of its bins are the contents "
                "times the mean weight of their channel"
            )
        processes = [
            part for name in self.config.processes for part in self._process(name, nuisances, remarks)
        ]
        processes.sort(key=lambda process: not process.signal)
        names = [process.name for process in processes]
        if twice := [name for name in names if names.count(name) > 1]:
            raise TopRecoError(f"processes: two are called {twice[0]!r}; another name expected")
        expectation = self._expectation(processes)
        remarks += [
            f"{channel} has no background, which Combine takes with --X-allow-no-background only"
            for channel in self.channels
            if not any(channel in process.nominal for process in processes if not process.signal)
        ]
        data = dict(expectation)
        for dataset in self.config.data:
            found = self.contents(dataset, NOMINAL)
            if found is None:
                raise TopRecoError(f"data: {dataset!r} has no events of method {self.method!r}")
            for channel, sums in found.items():
                first = dataset == self.config.data[0]
                data[channel] = sums.value if first else data[channel] + sums.value
        truth: tuple[Axis, ...] = ()
        if self.observable is not None:
            axis = self.histograms[f"response/{self.observable}"].axes["truth"]
            truth = unrolled_axes(axis) or (Axis(f"true {self._label(axis)}", np.asarray(axis.edges)),)
        return Templates(
            histogram=self.config.histogram,
            method=self.method,
            axes=self.axes,
            truth=truth,
            channels=tuple(self.channels),
            processes=tuple(processes),
            data=data,
            is_data=bool(self.config.data),
            unused=unused,
            remarks=tuple(remarks),
        )

    def _process(self, name: str, nuisances: Sequence[_Nuisance], remarks: list[str]) -> Iterator[Process]:
        about = self.config.processes[name]
        nominal = self.parts(name, NOMINAL)
        if nominal is None:
            datasets = ", ".join(about.datasets)
            raise TopRecoError(f"processes.{name}: no nominal events of method {self.method!r} in {datasets}")
        expected = self.cross_sections(name) if self.observable is not None and about.signal else {}
        shapes: dict[str, dict[str, tuple[Channelwise, Channelwise]]] = {part: {} for part in nominal}
        for nuisance in nuisances:
            if nuisance.processes is not None and name not in nuisance.processes:
                continue
            varied = []
            for variation in nuisance.variations:
                found = self.parts(name, variation)
                if found is None:
                    raise TopRecoError(
                        f"variation {variation!r}: not filled for {name} ({', '.join(about.datasets)}); run "
                        "again with it, or name the processes that have it as "
                        f"nuisances.{nuisance.name}.processes"
                    )
                varied.append(found)
            for part, channels in nominal.items():
                pair = _up_and_down(channels, [found[part] for found in varied], nuisance.combination)
                # What differs by rounding only changes nothing.
                if not all(
                    np.allclose(way[c].value, channels[c].value, rtol=1e-9, atol=0)
                    for way in pair
                    for c in channels
                ):
                    shapes[part][nuisance.name] = pair
        rates = {}
        for key, rate in self.config.nuisances.items():
            if rate is None or rate.rate is None or name not in (rate.processes or (name,)):
                continue
            down, up = (1 / rate.rate, rate.rate) if isinstance(rate.rate, float) else rate.rate
            rates[key if rate.correlated else f"{key}_{self.config.year}"] = (down, up)
        for part, channels in nominal.items():
            present = {channel: sums for channel, sums in channels.items() if sums.value.sum() > 0}
            empty = part.endswith(("_outside", "_fakes")) and part != name
            remarks += _remarks(part, channels, quiet=empty)
            if not present:
                if part in expected:
                    raise TopRecoError(
                        f"{part}: no selected events in this bin of the truth; take wider bins of "
                        f"unfolding.observables.{self.observable}.truth"
                    )
                continue
            _check_varied(part, present, shapes[part])
            yield Process(
                name=part,
                signal=about.signal and (not expected or part in expected),
                nominal=present,
                shapes=shapes[part],
                rates=rates,
                rate_parameter=about.rate_parameter,
                expected=expected.get(part),
            )

    def _expectation(self, processes: Sequence[Process]) -> dict[str, Array]:
        """Sum of the processes by channel, positive in every bin."""
        total: dict[str, Array] = {}
        for channel in self.channels:
            found = [process.nominal[channel].value for process in processes if channel in process.nominal]
            if not found:
                raise TopRecoError(
                    f"channel {channel!r}: no events of any process; leave it out of 'channels'"
                )
            total[channel] = np.sum(found, axis=0)
            if (low := np.flatnonzero(total[channel] <= 0)).size:
                raise TopRecoError(
                    f"channel {channel!r}: {total[channel][low[0]]:.3g} events expected in bin {low[0] + 1} "
                    f"of {len(total[channel])} ({self._bin(int(low[0]))}), a positive number needed"
                    + (f", and in {len(low) - 1} other bins" if len(low) > 1 else "")
                    + "; merge bins with 'edges'"
                )
        return total

    def _bin(self, number: int) -> str:
        """Range of a bin of the templates as text."""
        names = " and ".join(axis.label for axis in self.axes)
        return f"{names} {bins_of(self.axes)[number]}"


def unrolled_axes(axis: Any) -> tuple[Axis, ...]:
    """The axes whose bins an axis holds one after the other, empty for one of a single observable."""
    return tuple(Axis(_text(name), np.asarray(edges)) for name, edges in unrolled_of(axis))


def _text(name: str) -> str:
    """Name of an observable with its unit."""
    unit = OBSERVABLES[name].unit
    return f"{name} [{unit}]" if unit else name


def _is_category(axis: Any) -> bool:
    return isinstance(axis, hist.axis.StrCategory)


def _channel(values: Array, channel: str) -> Array:
    """Values of one channel, or of all, of an array whose first axis are the channels."""
    return values.sum(axis=0) if channel == ALL_CHANNELS else values[CHANNELS.index(channel)]


def _added(a: Channelwise, b: Channelwise) -> Channelwise:
    return {c: Sums(a[c].value + b[c].value, a[c].variance + b[c].variance) for c in a}


def _check_name(name: str) -> None:
    try:
        combine_name(name)
    except ValueError as error:
        raise TopRecoError(f"nuisance of the run: {error}; name it in 'nuisances' with up and down") from None


_COMBINATIONS: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {
    "pair": lambda n, v: (v[0], v[1]),
    "mirror": lambda n, v: (v[0], 2 * n - v[0]),
    "hessian": lambda n, v: _around(n, np.sqrt(((v - n) ** 2).sum(axis=0))),
    "replicas": lambda n, v: _around(n, v.std(axis=0, ddof=1)),
    "envelope": lambda n, v: (np.maximum(v.max(axis=0), n), np.minimum(v.min(axis=0), n)),
}
"""Up and down from the nominal contents (m,) and the varied ones (k, m)."""


def _around(nominal: Array, width: Array) -> tuple[Array, Array]:
    return nominal + width, nominal - width


def _up_and_down(
    nominal: Channelwise, varied: Sequence[Channelwise], combination: str
) -> tuple[Channelwise, Channelwise]:
    up, down = {}, {}
    for channel, sums in nominal.items():
        values = np.stack([found[channel].value for found in varied])
        ways = _COMBINATIONS[combination](sums.value, values)
        variances = [found[channel].variance for found in varied]
        spread = variances if combination == "pair" else [sums.variance, sums.variance]
        up[channel], down[channel] = (Sums(*way) for way in zip(ways, spread, strict=True))
    return up, down


def _check_varied(
    name: str, nominal: Channelwise, shapes: Mapping[str, tuple[Channelwise, Channelwise]]
) -> None:
    for nuisance, pair in shapes.items():
        for way, contents in zip(("Up", "Down"), pair, strict=True):
            for channel in nominal:
                if not (total := contents[channel].value.sum()) > 0:
                    raise TopRecoError(
                        f"{name}_{nuisance}{way} in channel {channel!r}: {total:.3g} events in sum, a "
                        "positive number needed; leave the process out of "
                        f"nuisances.{nuisance}.processes"
                    )


def _remarks(name: str, channels: Channelwise, *, quiet: bool) -> Iterator[str]:
    """Remarks on empty and negative bins of a process; `quiet`: not if it has no events at all."""
    for channel, sums in channels.items():
        if not sums.value.sum() > 0:
            if not (quiet and not sums.variance.any()):
                yield f"{name} is left out of {channel}: {sums.value.sum():.3g} events in sum"
            continue
        for what, bad in (("negative", sums.value < 0), ("empty", sums.value == 0)):
            if bad.any():
                numbers = ", ".join(str(i + 1) for i in np.flatnonzero(bad))
                yield f"{name} has {bad.sum()} {what} of {len(bad)} bins in {channel}: {numbers}"


def rows_of_yields(templates: Templates) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the table of expected and observed events by process and channel."""

    def text(sums: Sums | None) -> str:
        if sums is None:
            return UNDEFINED
        return format_estimate(float(sums.value.sum()), float(np.sqrt(sums.variance.sum())))

    rows = [
        [process.name, *(text(process.nominal.get(channel)) for channel in templates.channels)]
        for process in templates.processes
    ]
    totals = []
    for channel in templates.channels:
        every = [p.nominal[channel] for p in templates.processes if channel in p.nominal]
        totals.append(text(Sums(*(np.sum(part, axis=0) for part in zip(*every, strict=True)))))
    rows.append(["expected", *totals])
    if templates.is_data:
        rows.append(["data", *(f"{templates.data[channel].sum():.0f}" for channel in templates.channels)])
    return ["process", *templates.channels], rows


def bins_of(axes: Sequence[Axis]) -> list[str]:
    """Ranges of the bins of axes as text, in the order in which they are unrolled."""
    return bin_ranges([axis.edges for axis in axes])
