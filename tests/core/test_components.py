"""Saved components are looked at before they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from rcg.core.components import check_model_folder, component_class
from rcg.core.errors import UserError
from rcg.encoders.ssl_encoder import SSLEncoder


def test_a_model_of_another_library_names_no_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert component_class(tmp_path) is None
    with pytest.raises(UserError, match="holds no model that says what it is, but a SSLEncoder is needed; give"):
        check_model_folder(SSLEncoder, tmp_path)
