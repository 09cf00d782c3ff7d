"""Tests of reports and of comparisons of two runs. The runs are invented: no number in them was measured."""

import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from math import prod

import pytest

from benchmarks import plots, report
from benchmarks.cases import MAPS, OTHER_RANKS, SKIPS, Case, inputs
from benchmarks.compare import compare
from benchmarks.runs import COPY, Provider, Row, Run, write
from benchmarks.timer import Spread

OURS, TIMM, MONAI, PLAIN = Provider("attzoo"), Provider("timm"), Provider("MONAI"), Provider("plain")
COMPILED = Provider("attzoo", form="compiled")
PEERS = {"se": TIMM, "eca": TIMM, "cbam": TIMM, "attention_gate": MONAI}
COPIES = {"se": 3, "eca": 3.2, "channel_attention": 4.4, "spatial_attention": 6, "cbam": 9, "attention_gate": 12}


def about(value, tolerance=0.02):
    """Return quartiles that differ from the median by this relative tolerance."""
    return Spread(value * (1 - tolerance), value, value * (1 + tolerance))


def timed(case, provider, seconds, copy_seconds, **fields):
    """Return a row with the status "timed"; x is moved twice in inference and five times in training."""
    x = 4 * prod(case.shapes[0])
    is_training = case.mode == "training" and case.network is None
    memory = {"kept": 2 * x, "peak": 5 * x} if is_training else {}
    spreads = {"seconds": about(seconds), "copies": about(seconds / copy_seconds)}
    moved = (2 if provider == COPY or not is_training else 5) * x
    row = Row(case, provider, "timed", error=2e-7, least=0.9 * seconds, samples=40, moved=moved)
    return replace(row, **spreads | memory | fields)


def rows_of(case, rng):
    """Return the rows of a case: the copy, attzoo eager and compiled, and a peer, which is the reference."""
    copy_seconds = 2 * 4 * prod(case.shapes[0]) / 9e9
    seconds = copy_seconds * COPIES[case.block] * (3.5 if case.mode == "training" else 1) * rng.uniform(0.9, 1.1)
    peer = PEERS.get(case.block, PLAIN)
    reference = {"reference": str(peer), "control": about(1)}
    ratio = rng.choice([0.7, 1.0, 1.01])
    return [
        timed(case, COPY, copy_seconds, copy_seconds),
        timed(case, OURS, seconds * ratio, copy_seconds, ratio=about(ratio), **reference),
        timed(case, COMPILED, seconds * 0.6, copy_seconds, ratio=about(0.6), **reference),
        timed(case, peer, seconds, copy_seconds, **reference),
    ]


def networks(rng):
    """Yield the rows of ResNet-50 and the U-Net, without and with blocks."""
    for network, names in {"resnet50": ("none", "se", "cbam", "eca"), "unet": ("none", "attention_gate")}.items():
        for mode in ("inference", "training"):
            for block in names:
                case = Case(block, ((2, 3, 128, 128),), mode, network=network)
                seconds = (0.3 if mode == "training" else 0.1) * (1 if block == "none" else rng.uniform(1.02, 1.6))
                yield timed(case, OURS, seconds, 1e-5)


@pytest.fixture(scope="session")
def run():
    """Return an invented run with all kinds of rows."""
    rng = random.Random(5)
    cases = [
        Case(block, inputs(block, shape), mode)
        for block in COPIES
        for shape in ((SKIPS if block == "attention_gate" else MAPS)["cpu"] + OTHER_RANKS["cpu"])
        for mode in ("inference", "training")
    ]
    rows = [row for case in cases for row in rows_of(case, rng)] + [*networks(rng)]
    bfloat16_case = Case("se", ((8, 256, 56, 56),), dtype="bfloat16")
    rows += [
        replace(rows_of(bfloat16_case, rng)[1], status="unsteady", why="the control moved by 9 %"),
        Row(bfloat16_case, TIMM, "wrong", why="output: 0.02 | <script>alert(1)</script> & more", error=0.02),
        Row(bfloat16_case, COMPILED, "failed", why="RuntimeError: no compiler"),
    ]
    return Run(
        suite="full", device="cpu", command="python -m benchmarks run --full", date="2026-11-21T15:00:00",
        commit="0123456789ab", machine={"processor": "AMD EPYC <made up>", "cores": 2, "load before": [0.1, 0.2]},
        versions={"python": "3.12.3", "torch": "2.13.0+cpu", "timm": "1.0.31", "torchvision": None},
        flags={"threads": 1, "denormals": False}, ceilings={"copy GB/s": 9.3},
        absent={"torchvision": "pip install --no-deps torchvision==0.28.0"}, rows=rows,
        left=["eca 8x64x2048 float16 channels last training"],
    )   # fmt: skip


def tables(markdown):
    """Return the cells of the tables in a Markdown text by section title."""
    cells = {}
    for section in markdown.split("\n## ")[1:]:
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
        cells[section.splitlines()[0]] = [[cell.strip() for cell in line] for line in lines]
    return cells


def with_rows(run, rows):
    """Return the run with these rows instead of its own."""
    return replace(run, rows=list(rows))


# ---- Markdown --------------------------------------------------------------------------------------------------------


def test_all_lines_of_a_table_have_the_same_number_of_cells(run):
    for runs in ([run], [run, run]):
        sections = tables(report.markdown(runs))
        assert {"attzoo beside its peers", "What a block costs a ResNet-50", "Every row: cbam"} <= {*sections}
        for lines in filter(None, sections.values()):
            starts = [i - 1 for i, line in enumerate(lines) if line[0] == "---"]   # a section may have several tables
            for i, start_index in enumerate(starts):
                assert {len(line) for line in lines[start_index : [*starts, None][i + 1]]} == {len(lines[start_index])}


def test_every_row_is_listed_under_its_block_with_its_numbers(run):
    sections = tables(report.markdown([run]))
    listed = [lines for title, lines in sections.items() if "row:" in title]
    assert sum(len([line for line in lines if any(line[1:])]) - 2 for lines in listed) == len(run.rows)
    case = Case("se", ((8, 256, 56, 56),))
    row = Row(
        case, OURS, "timed", error=3e-7, seconds=Spread(0.0012, 0.00125, 0.0013), copies=Spread(2.4, 2.5, 2.6),
        reference="timm", ratio=Spread(0.5, 0.52, 0.54), control=Spread(0.97, 1, 1.03), kept=2**22, peak=2**23,
        moved=10**7,
    )   # fmt: skip
    peer = timed(case, TIMM, 1e-3, 5e-4, reference="timm", control=about(1), kept=5000)
    lines = tables(report.markdown([with_rows(run, [row, peer])]))["Every row: se"]
    assert lines[2][0] == "**8x256x56x56, float32, channels first, inference, CPU time of one thread; ratios to timm**"
    assert lines[3] == [
        "attzoo", "faster", "1.25 ms (1.20–1.30)", "2.50 (2.40–2.60)", "0.52 (0.50–0.54)", "1.00 (0.97–1.03)",   # noqa: RUF001
        "3e-07", "4.00 (0.16 x)", "8.00 (0.33 x)", "8.00 (86 %)",
    ]   # fmt: skip
    assert lines[4][1] == "reference"
    assert lines[4][7] == "<0.01 (<0.01 x)".replace("<", "&lt;")


def test_the_comparison_table_has_ranges_of_ratios_and_counts_of_verdicts(run):
    case = Case("eca", ((8, 256, 56, 56),))
    reference = {"reference": "timm", "control": about(1)}
    ratios = {"float32": 0.5, "float16": 1.01, "bfloat16": 1.5}
    rows = [
        timed(replace(case, dtype=dtype), OURS, 1e-3, 5e-4, ratio=about(ratio), **reference)
        for dtype, ratio in ratios.items()
    ]
    unsteady = timed(
        replace(case, layout="channels last"), OURS, 1e-3, 5e-4, ratio=about(7), status="unsteady", **reference
    )
    compiled = timed(case, COMPILED, 1e-3, 5e-4, ratio=about(0.4), **reference)
    in_unet = Case("eca", ((2, 3, 64, 64),), "training", network="unet")
    network = timed(in_unet, OURS, 1, 1, ratio=about(0.9), **reference)
    markdown = report.markdown([with_rows(run, [*rows, unsteady, network, compiled])])
    lines = tables(markdown)["attzoo beside its peers"][2:]
    verdicts = "faster in 1, same in 1, slower in 1, unsteady in 1"
    assert lines[0] == ["eca", "", "attzoo", "timm", "0.50–1.50", verdicts, "", ""]   # noqa: RUF001
    assert lines[1:] == [["U-Net with eca", "", "attzoo", "timm", "", "", "0.90", "faster in 1"]]
    assert f"attzoo is {verdicts.replace('same', 'the same').replace('faster in 1', 'faster in 2')}." in markdown
    forms = tables(markdown)["Compiled, fused, and in Keras"]
    assert forms[2][0] == "**torch, CPU time of one thread**"
    assert forms[3][:3] == ["eca", "attzoo (compiled)", "1.00 ms (0.98–1.02)"]   # noqa: RUF001
    assert forms[-1] == ["eca", "", "attzoo (compiled)", "timm", "0.40", "faster in 1", "", ""]


def test_the_ratio_of_a_peer_to_attzoo_is_inverted(run):
    case = Case("eca", ((8, 256, 56, 56),))
    peer = timed(case, TIMM, 2e-3, 5e-4, ratio=about(2), reference="attzoo", control=about(1))
    line = tables(report.markdown([with_rows(run, [peer])]))["attzoo beside its peers"][2]
    assert line[1:6] == ["", "attzoo", "timm", "0.50", "faster in 1"]


def quartiles_text(value):
    """Return the text of about(value)."""
    return f"{value:.2f} ({value * 0.98:.2f}\N{EN DASH}{value * 1.02:.2f})"


def test_the_suite_blocks_has_the_costs_of_every_block_and_its_ratios_at_each_size(run):
    small, x = ((4, 64, 7, 7),), 4 * 4 * 64 * 7 * 7
    defaults, timms = Case("se", small), Case("se", small, variant="timm")
    numbers = {"flops": 2 * 4 * 512, "parameters": 1580}
    beside = {"reference": "timm", "control": about(0.99)}
    rows = [
        timed(defaults, OURS, 3e-5, 1e-5, traffic=3 * x, **numbers),
        timed(replace(defaults, mode="training"), OURS, 9e-5, 1e-5, traffic=13 * x, flops=6 * 4 * 512, parameters=1580),
        timed(replace(defaults, shapes=((4, 64, 9, 9),)), OURS, 4e-5, 1e-5, traffic=3 * x, **numbers),
        timed(timms, OURS, 2e-5, 1e-5, ratio=about(0.5), **beside),
        timed(timms, TIMM, 4e-5, 1e-5, **beside),
        timed(replace(timms, mode="training"), OURS, 2e-5, 1e-5, ratio=about(1.25), status="unsteady", **beside),
        timed(defaults, COPY, 1e-5, 1e-5),
    ]
    sections = tables(report.markdown([replace(run, suite="blocks", rows=rows)]))
    title = "**4x64x7x7, float32, channels first, CPU time of one thread**"
    costs = sections["What each block costs at each size"]
    assert costs[2] == [title, *[""] * 6]
    assert costs[3] == ["se", "1,580", "512", "0.14 (3.00 x)", quartiles_text(3), "0.62 (13.0 x)", quartiles_text(9)]
    assert costs[5][-2:] == ["", ""]   # no training step was timed
    assert len(costs) == 6
    ratios = sections["Each block beside another library"]
    assert ratios[2:] == [
        [title, *[""] * 8],
        ["se", "timm", "timm", quartiles_text(0.5), quartiles_text(0.99), "faster", quartiles_text(1.25),
         quartiles_text(0.99), "unsteady"],
    ]   # fmt: skip
    assert not {"What each block costs at each size", "Each block beside another library"} & {
        *tables(report.markdown([replace(run, rows=rows)]))   # of another suite
    }


def test_two_clocks_have_separate_groups(run):
    case, reference = Case("eca", ((8, 256, 56, 56),)), {"reference": "timm", "control": about(1)}
    ratios = {"graph": 0.5, "calls": 1}
    rows = [
        timed(case, OURS, 1e-3, 5e-4, ratio=about(ratio), clock=clock, **reference) for clock, ratio in ratios.items()
    ]
    lines = tables(report.markdown([replace(with_rows(run, rows), device="cuda")]))["attzoo beside its peers"]
    assert [line[0] for line in lines[2::2]] == ["**CUDA graphs replayed**", "**calls from Python**"]
    assert [line[4] for line in lines[3::2]] == ["0.50", "1.00"]


def test_an_unsteady_cost_is_marked(run):
    row = timed(Case("eca", ((8, 256, 56, 56),)), OURS, 1e-3, 5e-4, status="unsteady")
    lines = tables(report.markdown([with_rows(run, [row])]))["What a block costs"]
    assert lines[2][2] == "unsteady: 1.00 ms (0.98–1.02)"   # noqa: RUF001


def test_keras_has_a_separate_group_with_its_clock(run):
    case, keras = Case("eca", ((8, 256, 56, 56),)), Provider("attzoo", "jax", "jit")
    graph = [timed(case, provider, 1e-3, 5e-4, clock="graph") for provider in (OURS, COMPILED)]
    rows = [*graph, timed(case, keras, 3e-3, 5e-4, clock="calls")]
    lines = tables(report.markdown([with_rows(run, rows)]))["Compiled, fused, and in Keras"][2:]
    assert [line[:2] for line in lines] == [
        ["**torch, CUDA graphs replayed**", ""], ["eca", "attzoo (compiled)"],
        ["**Keras, calls from Python**", ""], ["eca", "attzoo jax (jit)"],
    ]   # fmt: skip


def test_rows_without_times_are_in_the_group_of_their_case(run):
    case = Case("eca", ((8, 256, 56, 56),))
    rows = [Row(case, TIMM, "wrong"), timed(case, OURS, 1e-3, 5e-4, clock="graph")]
    lines = tables(report.markdown([with_rows(run, rows)]))["Every row: eca"]
    assert [line[:2] for line in lines[3:]] == [["timm", "wrong"], ["attzoo", ""]]
    assert "graph" in lines[2][0]
    assert "not timed" in tables(report.markdown([with_rows(run, rows[:1])]))["Every row: eca"][2][0]


def test_a_network_is_compared_with_the_same_network_without_a_block(run):
    variants = {"none": None, "se": "timm", "cbam": "timm"}
    cases = [Case(block, ((4, 3, 32, 32),), mode, network="resnet50", variant=variant)
             for block, variant in variants.items() for mode in ("inference", "training")]   # fmt: skip
    times = {"none": 0.5, "se": 0.8, "cbam": 1.0}
    rows = [timed(case, OURS, times[case.block], 1e-3) for case in cases]
    larger_row = timed(replace(cases[0], shapes=((8, 3, 32, 32),)), OURS, 9.0, 1e-3)   # in another group
    rows.insert(0, larger_row)
    lines = tables(report.markdown([with_rows(run, rows)]))["What a block costs a ResNet-50"][2:]
    assert lines[3] == ["none", "attzoo", *["8.00", "100 %"] * 2, "1855", "100 %", "1024", "100 %"]
    assert lines[4] == ["se", "attzoo", *["5.00", "62 %"] * 2, "1620", "87 %", "759", "74 %"]
    assert lines[5] == ["cbam", "attzoo", *["4.00", "50 %"] * 2, "1213", "65 %", "472", "46 %"]


def test_a_picture_of_a_network_shows_fractions_of_the_same_network(run):
    plain_row = Case("none", ((4, 3, 32, 32),), network="resnet50")
    larger_row = replace(plain_row, shapes=((8, 3, 32, 32),))
    rows = [timed(plain_row, PLAIN, 0.5, 1e-3), timed(replace(plain_row, block="se"), OURS, 0.8, 1e-3)]
    (picture,) = plots.pictures([with_rows(run, [*rows, timed(larger_row, OURS, 9.0, 1e-3)])])["resnet50"]
    numbers = {*re.findall(r">([0-9]+ %)<", picture.svg)}
    assert numbers == {"62 %", "87 %"} | {"0 %", "25 %", "50 %", "75 %", "100 %"}   # measured, published, scale


def test_a_network_without_a_timed_plain_network_has_no_fraction(run):
    row = timed(Case("se", ((4, 3, 32, 32),), network="unet"), OURS, 0.5, 1e-3)
    assert tables(report.markdown([with_rows(run, [row])]))["What a block costs a U-Net"][3][2:4] == ["8.00", ""]


def test_problems_missing_packages_and_omitted_cases_are_listed(run):
    markdown = report.markdown([run])
    sections = tables(markdown)
    assert [line[1:] for line in sections["What went wrong"][2:]] == [
        ["attzoo", "unsteady", "the control moved by 9 %"],
        ["timm", "wrong", r"output: 0.02 \| &lt;script&gt;alert(1)&lt;/script&gt; &amp; more"],
        ["attzoo (compiled)", "failed", "RuntimeError: no compiler"],
    ]
    assert sections["Left out for time"][2:] == [["eca 8x64x2048 float16 channels last training"]]
    assert sections["Not installed, so not measured"][2:] == [
        ["torchvision", "pip install --no-deps torchvision==0.28.0"]
    ]
    assert "CPU timings of one thread; not comparable with a GPU's." in markdown
    assert ["commit", "0123456789ab"] in sections["Conditions"]
    assert "<script" not in markdown


def test_a_run_on_a_gpu_has_no_note_on_cpu_timings(run):
    markdown = report.markdown([replace(run, device="cuda", machine={"gpu": "H200", "processor": "EPYC"})])
    assert "Measured on H200 (cuda" in markdown
    assert "not comparable" not in markdown


# ---- incomplete runs -------------------------------------------------------------------------------------------------


def parts(run):
    """Return subsets of a run's rows by name."""
    rows = run.rows
    return {
        "empty": [],
        "failed": [Row(row.case, row.provider, "failed", why="no memory") for row in rows[:3]],
        "no networks": [row for row in rows if row.case.network is None],
        "only networks": [row for row in rows if row.case.network],
        "no peers": [
            replace(row, ratio=None, control=None, reference=None) for row in rows[1::4] if not row.case.network
        ],
        "one case": rows[:4],
    }


@pytest.mark.parametrize("part", ["empty", "failed", "no networks", "only networks", "no peers", "one case"])
def test_an_incomplete_run_has_a_report(run, part):
    incomplete_run = replace(with_rows(run, parts(run)[part]), ceilings={}, absent={}, left=[], machine={}, commit=None)
    headings = re.findall("^## (.*)", report.markdown([incomplete_run]), flags=re.MULTILINE)
    assert headings[0] == "Summary"
    assert headings[-1] == "Conditions"
    assert headings == re.findall("<h2 id=.*>(.*)</h2>", report.page([incomplete_run]))
    assert ("What a block costs a ResNet-50" in headings) == (part == "only networks")
    assert ("attzoo beside its peers" in headings) == (part in ("no networks", "one case"))
    assert ("What a block costs" in headings) == (part in ("no networks", "one case", "no peers"))


# ---- pages -----------------------------------------------------------------------------------------------------------

VOID = {"meta", "br", "img", "hr", "link", "input"}


class Page(HTMLParser):
    """The contents of a parsed page: open tags, all tags, referenced URLs, ids, text, and cells of each table row.

    Asserts that tags are closed in order.
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.urls, self.ids, self.text, self.cells = [], [], [], [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [value for name, value in attrs if name in ("src", "href", "srcset", "data") and tag != "a"]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "tr":
            self.cells.append(0)
        if tag in ("td", "th"):
            self.cells[-1] += int(dict(attrs).get("colspan", 1))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.text += " "

    def handle_data(self, data):
        self.text += data


def test_a_page_has_no_scripts_and_no_external_files(run):
    text = report.page([run])
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object"} & {*page.tags}
    assert all(url.startswith("#") and url[1:] in page.ids for url in page.urls)   # elements of its own pictures
    assert len(page.ids) == len({*page.ids})
    assert not re.search(r"url\((?!#)|@import", text)
    assert page.tags.count("svg") == 7   # copies, eager and compiled; memory; growth in two modes; two networks
    assert "alert(1)</script> & more" in page.text
    assert "AMD EPYC <made up>" in page.text
    assert {*re.findall('href="(http[^"]*)"', text)} == {"https://arxiv.org/abs/1910.03151v4"}


def test_a_page_has_the_same_tables_as_the_markdown(run):
    text = " ".join(Page(report.page([run])).text.split())
    for title, lines in tables(report.markdown([run])).items():
        if title not in ("What went wrong", "Conditions"):   # these have characters that Markdown escapes
            for line in (line for line in lines if "---" not in line):
                assert " ".join(cell for cell in line if cell).replace("**", "") in text


def test_pictures_show_the_numbers_of_the_rows(run):
    case = Case("se", ((8, 256, 56, 56),), "training")
    row = timed(case, OURS, 0.5, 0.04, kept=3 * 8 * 256 * 56 * 56, peak=14 * 8 * 256 * 56 * 56)
    eager_picture, second_picture = plots.pictures([with_rows(run, [row])])["alone"]
    assert ">12.5<" in eager_picture.svg
    assert ">3.50<" in second_picture.svg
    assert not re.search("#[0-9a-f]{6}", eager_picture.svg)   # all colours are variables of the page's style sheet


def test_the_summary_plot_is_a_png_of_the_expected_width(run, tmp_path):
    write(tmp_path / "run.json", run)
    report.picture([tmp_path / "run.json"], tmp_path / "cost.png")
    data = (tmp_path / "cost.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20]) == 1800   # width in pixels, displayed at half that
    with pytest.raises(ValueError, match="got one without"):
        plots.cost(with_rows(run, []))


# ---- several files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def save(tmp_path, run):
    """Return a function that writes a short run with some fields changed, and returns the file."""
    short_run = with_rows(run, run.rows[:8])

    def save_run(**changes):
        path = tmp_path / f"{len([*tmp_path.iterdir()])}.json"
        write(path, replace(short_run, **changes))
        return path

    return save_run


def test_two_runs_of_one_machine_are_labelled_by_number(save):
    files = [save(date="2026-11-22", commit="later"), save(machine={"processor": "AMD EPYC <made up>", "cores": 2})]
    sections = tables(report.report(files))
    assert [line[0] for line in sections["Every row: se"][2:7]][1:] == ["1", "1", "1", "1"]
    assert {line[0] for line in sections["Every row: se"][3:] if line[1]} == {"1", "2"}
    commits = [line[1] for line in sections["Conditions"] if line[0] == "commit"]
    assert commits == ["0123456789ab", "later"]   # the older is run 1


@pytest.mark.parametrize(
    "changes",
    [{"device": "cuda"}, {"versions": {"torch": "2.12.0"}}, {"machine": {"processor": "another", "cores": 2}}],
    ids=lambda changes: next(iter(changes)),
)
def test_runs_in_different_environments_are_refused_without_across(save, changes):
    files = [save(), save(**changes)]
    with pytest.raises(ValueError, match=r"expected runs of one machine, .*, got .* and .*--across"):
        report.report(files)
    with pytest.raises(ValueError, match="expected runs of one machine"):
        compare(*files)
    lines = tables(report.report(files, across=True))["Every row: se"][2:]
    names = {line[0] for line in lines if line[1]}
    second_machine = "another" if "machine" in changes else "AMD EPYC &lt;made up&gt;"
    assert names == {"1: AMD EPYC &lt;made up&gt;", f"2: {second_machine}"}
    assert "says nothing about" in report.report(files, across=True, html=True)


def test_a_report_without_files_is_refused():
    with pytest.raises(ValueError, match="expected at least one result file, got none"):
        report.report([])


# ---- comparisons of two runs -----------------------------------------------------------------------------------------


def compare_rows(save, old_row, new_row):
    """Return the kinds of the changes between runs of one row each, and whether any is for the worse."""
    table, worse = compare(save(rows=[old_row]), save(rows=[new_row]))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return [line[0] for line in lines[2:]], worse


BEFORE = timed(Case("se", ((8, 64, 56, 56),)), OURS, 1e-3, 5e-4)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, []),
        ({"seconds": about(1.3e-3), "copies": about(2.6)}, ["slower"]),
        ({"seconds": about(0.7e-3), "copies": about(1.4)}, ["faster"]),
        ({"seconds": about(1.3e-3)}, []),                             # the whole machine is slower
        ({"seconds": about(1.3e-3), "copies": about(1.4)}, []),       # slower, but less than the machine
        ({"copies": about(2.6)}, []),                                 # a faster copy makes nothing slower
        ({"seconds": about(1.3e-3, 0.3), "copies": about(2.6)}, []),  # quartiles overlap
        ({"seconds": about(1.3e-3), "copies": about(2.6, 0.3)}, []),
        ({"seconds": about(1.04e-3, 0.001), "copies": about(2.08, 0.001)}, []),   # less than 5 %
        ({"status": "wrong", "seconds": None, "copies": None}, ["now wrong"]),
        ({"status": "failed", "seconds": None, "copies": None}, ["now failed"]),
        ({"status": "unsteady", "seconds": about(9e-3), "copies": about(18)}, ["now unsteady"]),
        ({"clock": "calls"}, ["gone", "new"]),
        ({"provider": TIMM, "status": "wrong"}, ["new and wrong", "gone"]),
    ],
)
def test_compare_lists_the_change_of_a_row(save, changes, kinds):
    earlier_row = replace(BEFORE, seconds=about(1e-3, 0.001), copies=about(2, 0.001)) if len(kinds) == 0 else BEFORE
    listed, worse = compare_rows(save, earlier_row, replace(earlier_row, **changes))
    assert listed == kinds
    assert worse == any(kind in ("slower", "now wrong", "now failed", "new and wrong") for kind in kinds)


def test_a_corrected_row_is_not_worse(save):
    wrong_row = replace(BEFORE, status="wrong", seconds=None, copies=None)
    assert compare_rows(save, wrong_row, BEFORE) == (["now timed"], False)
    assert compare_rows(save, wrong_row, wrong_row) == ([], False)


def test_a_row_whose_reference_is_slower_too_is_unchanged(save):
    slower_fields = {"seconds": about(1.3e-3), "copies": about(2.6)}
    old_row = replace(BEFORE, ratio=about(1), reference="timm")
    assert compare_rows(save, old_row, replace(old_row, **slower_fields)) == ([], False)
    assert compare_rows(save, old_row, replace(old_row, ratio=about(1.3), **slower_fields)) == (["slower"], True)
    assert compare_rows(save, old_row, replace(old_row, reference="plain", **slower_fields)) == (["slower"], True)


def test_a_slower_peer_is_listed_but_not_worse(save):
    earlier_row = replace(BEFORE, provider=TIMM)
    assert compare_rows(save, earlier_row, replace(earlier_row, seconds=about(1.3e-3), copies=about(2.6))) == (
        ["slower"],
        False,
    )
    assert compare_rows(save, earlier_row, Row(BEFORE.case, TIMM, "wrong")) == (["now wrong"], True)


def test_unsteady_times_are_not_compared(save):
    unsteady_row = replace(BEFORE, status="unsteady")
    changed_row = replace(unsteady_row, seconds=about(9e-3), copies=about(18))
    assert compare_rows(save, unsteady_row, changed_row) == ([], False)


def test_rows_without_copies_are_compared_with_the_change_of_all_copies(save):
    copy = timed(BEFORE.case, COPY, 5e-4, 5e-4)
    row_without_copies = replace(BEFORE, copies=None)
    slow = [replace(copy, seconds=about(6.5e-4)), replace(row_without_copies, seconds=about(1.3e-3))]
    assert compare(save(rows=[copy, row_without_copies]), save(rows=slow))[1] is False
    slow_row = replace(row_without_copies, seconds=about(2e-3))
    table, worse = compare(save(rows=[copy, row_without_copies]), save(rows=[slow[0], slow_row]))
    assert worse
    assert "a copy takes 1.30 times as long" in table
    assert "| 1.00 ms (0.98–1.02) | 2.00 ms (1.96–2.04) | 2.00 |" in table   # noqa: RUF001
