"""Settings from defaults, a file and flags."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from placerank.cli.settings import Options, RankOptions, SettingsError, file_flags, parse, to_toml
from placerank.data.urls import Url


@dataclass(kw_only=True)
class Optimizer:
    """How parameters learn."""

    lr: float = 1e-3
    """Learning rate."""
    weight_decay: float = 0.0
    """Decoupled decay."""
    nesterov: bool = True
    """Look ahead."""


@dataclass(kw_only=True)
class Config:
    """Make something.

    Attributes:
        rows: how many rows to make.
    """

    out: Path
    """Folder to write."""
    rows: int = 1000
    on_bad_rows: Literal["fail", "skip"] = "fail"
    seed: int | None = None
    name: str = "city"
    dims: tuple[int, ...] = (64, 32)
    plan: dict[str, str] = field(default_factory=dict)
    overwrite: bool = False
    optimizer: Optimizer = field(default_factory=Optimizer)

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows: got {self.rows}, expected at least 1")


def test_paths_may_be_urls(tmp_path: Path) -> None:
    settings, _ = parse("x", Config, Options, ["--out", "s3://bucket/a"])
    assert isinstance(settings.out, Url) and str(settings.out) == "s3://bucket/a"
    (tmp_path / "x.toml").write_text(to_toml(settings))
    again, _ = parse("x", Config, Options, ["--config", str(tmp_path / "x.toml")])
    assert again == settings and isinstance(again.out, Url)
    assert parse("x", Config, Options, ["--out", "file:///a/b"])[0].out == Path("/a/b")


def test_other_urls_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("x", Config, Options, ["--out", "ftp://a/b"])
    assert "ftp://a/b: got the scheme ftp" in capsys.readouterr().err


FILE = """
rows = 5
dims = [-7, 8]
plan = {item = "row_wise", user = "table_wise"}
overwrite = true
on_bad_rows = "skip"
[optimizer]
lr = 1e-2
nesterov = false
"""


def read(*argv: str) -> Config:
    return parse("placerank make", Config, Options, list(argv))[0]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "c.toml"
    path.write_text(FILE)
    return str(path)


def test_defaults() -> None:
    assert read("--out", "x") == Config(out=Path("x"))


def test_file_overrides_defaults(file: str) -> None:
    assert read("--config", file, "--out", "x") == Config(
        out=Path("x"),
        rows=5,
        dims=(-7, 8),
        plan={"item": "row_wise", "user": "table_wise"},
        overwrite=True,
        on_bad_rows="skip",
        optimizer=Optimizer(lr=0.01, nesterov=False),
    )


@pytest.mark.parametrize("file_first", [True, False])
def test_flags_override_the_file_wherever_it_stands(file: str, file_first: bool) -> None:
    flags = ["--rows", "3", "--no-overwrite", "--dims", "1", "--optimizer.lr", "1", "--out", "x"]
    config = read(*(["--config", file, *flags] if file_first else [*flags, f"--config={file}"]))
    assert (config.rows, config.overwrite, config.dims, config.optimizer.lr) == (3, False, (1,), 1.0)
    assert config.on_bad_rows == "skip"


def test_required_field_may_come_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('out = "somewhere"')
    assert read("--config", str(tmp_path / "c.toml")).out == Path("somewhere")


def test_config_json_of_a_run(tmp_path: Path) -> None:
    want = Config(out=Path("x"), seed=None, rows=7, plan={"a": "b"})
    (tmp_path / "config.json").write_text(json.dumps(asdict(want) | {"out": "x"}))
    assert read("--config", str(tmp_path / "config.json")) == want


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("on_bad_row = 'skip'", "unknown key 'on_bad_row'; did you mean 'on_bad_rows'?"),
        ("[optimizer]\nlrr = 1", "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
        ("zzzz = 1", "unknown key 'zzzz'; known: out, rows, on_bad_rows"),
        ("optimizer = 3", "optimizer: got 3, expected a table of settings"),
        ("overwrite = 'yes'", "overwrite: got 'yes', expected true or false"),
        ("rows = = 1", "not TOML: "),
        ("rows = 0", "rows: got 0, expected at least 1"),
    ],
)
def test_wrong_files_are_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(SettingsError) as error:
        read("--out", "x", "--config", str(tmp_path / "c.toml"))
    assert message in str(error.value)


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no\.toml"):
        read("--out", "x", "--config", str(tmp_path / "no.toml"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out", "x", "--rwos", "3"], "--rows"),
        (["--rows", "3"], "--out"),
        (["--out", "x", "--rows", "many"], "many"),
        (["--out", "x", "--on-bad-rows", "drop"], "drop"),
    ],
)
def test_wrong_flags_end_with_code_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        read(*argv)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_no_flags_at_all_are_told_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        parse("placerank make", Config, Options, [])
    assert exit.value.code == 2 and "--out PATH" in capsys.readouterr().err


def test_help_shows_the_docs_of_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse("placerank make", Config, RankOptions, ["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    for part in (
        "Make something.",
        "Folder to write.",
        "how many rows to make",
        "--optimizer.lr",
        "--nproc",
        "--config",
    ):
        assert part in text
    assert "Attributes:" not in text


def test_nproc_must_be_positive() -> None:
    with pytest.raises(SettingsError, match="nproc: got 0, expected at least 1"):
        parse("placerank make", Config, RankOptions, ["--out", "x", "--nproc", "0"])


words = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\x00"), min_size=1).filter(
    lambda text: text != "None"
)
configs = st.builds(
    Config,
    out=st.just(Path("some where/x")),
    rows=st.integers(1, 2**62),
    on_bad_rows=st.sampled_from(["fail", "skip"]),
    seed=st.none() | st.integers(-(2**62), 2**62),
    name=words,
    dims=st.lists(st.integers(-5, 5), max_size=3).map(tuple),
    plan=st.dictionaries(st.sampled_from(["item", "user"]), st.sampled_from(["row_wise", "table_wise"])),
    overwrite=st.booleans(),
    optimizer=st.builds(Optimizer, lr=st.floats(allow_nan=False), weight_decay=st.floats(0, 1), nesterov=st.booleans()),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(configs)
def test_printed_settings_give_the_settings_again(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "printed.toml"
    path.write_text(to_toml(config))
    assert read(*file_flags(path, Config)) == config
