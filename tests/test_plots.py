"""The pictures: what is drawn, where it lies, and that nothing global is touched."""

import subprocess
import sys

import pytest

import plots
from plots import PlotError, plot_loss_curve

matplotlib = pytest.importorskip("matplotlib")


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_loss_curve_draws_the_loss_and_the_parts_that_were_logged(tmp_path, drawn):
    history = [{"step": s, "loss": 3 / s, "loss_full": 2 / s, "loss_random": 1 / s} for s in (1, 2, 3)]
    history += [{"step": 3, "train_runtime": 1.0, "train_loss": 2.0}, {"step": 3, "eval_f1": 80.0}]
    plot_loss_curve(tmp_path / "loss.png", history)
    lines = {line.get_label(): list(zip(line.get_xdata(), line.get_ydata())) for line in drawn[0].axes[0].lines}
    assert lines == {
        "training loss": [(1, 3.0), (2, 1.5), (3, 1.0)],
        "full model": [(1, 2.0), (2, 1.0), (3, 2 / 3)],
        "random sub-models": [(1, 1.0), (2, 0.5), (3, 1 / 3)],
    }
    assert png_size(tmp_path / "loss.png") == (1200, 750)


def test_a_history_without_loss_is_refused(tmp_path):
    with pytest.raises(PlotError, match="logging_steps"):
        plot_loss_curve(tmp_path / "loss.png", [{"step": 1, "eval_f1": 2.0}])


def test_missing_matplotlib_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PlotError, match="pip install matplotlib") as error:
        plot_loss_curve(tmp_path / "loss.png", [{"step": 1, "loss": 1.0}])
    assert "\n" not in str(error.value) and isinstance(error.value, ValueError)


def test_importing_plots_loads_no_matplotlib_and_drawing_no_pyplot(tmp_path):
    code = (
        "import sys, plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plots.plot_loss_curve({str(tmp_path / 'loss.png')!r}, [dict(step=1, loss=1.0)])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    folder = plots.__file__.rsplit("/", 1)[0]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder)
