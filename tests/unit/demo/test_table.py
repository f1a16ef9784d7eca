"""The demo's table: every column is beside stock, and says what it is."""

from leanmoe_demo.story import TITLES
from leanmoe_demo.table import render


def arm(factor):
    sizes = dict.fromkeys(("disk_bytes", "weight_bytes", "resident_bytes"), 1e9 * factor)
    perplexity = dict.fromkeys(TITLES, 10 / factor)
    return {**sizes, "perplexity": perplexity, "answer": f"answer {factor}"}


def speed(tokens, ratio, skipped):
    ends = {"ratio_low": ratio - 0.1, "ratio_high": ratio + 0.1}
    return {"tokens_per_second": tokens, "ratio": ratio, "skip_rate": skipped, **ends}


RESULT = {
    "question": "Why?",
    "level": 1.0,
    "promise": {"kld": 0.02, "kld_upper": 0.03, "top1_agreement": 0.9},
    "stock": arm(1.0),
    "lean": arm(0.8),
    "sparse": arm(0.5),
    "load": {
        "users": 4,
        "rounds": 3,
        "stock": {"tokens_per_second": 80},
        "lean": speed(128, 1.6, 0.5),
        "sparse": speed(104, 1.3, 0.0),
    },
}


def test_every_figure_stands_in_its_column():
    lines = render(RESULT).splitlines()
    cells = {line[:28].strip(): line[28:].split("  ") for line in lines}
    found = {title: [cell.strip() for cell in row if cell] for title, row in cells.items()}
    assert found["weights"] == ["1,000 MB", "800 MB", "0.80x", "500 MB", "0.50x"]
    assert found["English chat"] == ["10.00", "12.50", "+25.0%", "20.00", "+100.0%"]
    assert found["tokens per second, 4 users"] == ["80", "128", "1.60x", "104", "1.30x"]
    assert found["of 3 rounds"] == ["1.50 to 1.70", "1.20 to 1.40"]
    assert found["assignments skipped"] == ["0 %", "50%", "0%"]
    # One grid: what is beside a column's figures stands under its heading.
    ends = {line.rindex("x") for line in lines if line.endswith("x")}
    assert ends == {len(lines[0]) - 1}


def test_the_sparse_column_says_what_was_done_and_what_was_not():
    shown = render(RESULT)
    assert "16 of every 32 weights" in shown and "not distilled" in shown
    assert [line.strip() for line in shown.splitlines()[-3:]] == [
        "stock: answer 1.0",
        "lean: answer 0.8",
        "sparse: answer 0.5",
    ]
