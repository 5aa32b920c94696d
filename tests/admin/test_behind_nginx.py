"""The page's documents through a reverse proxy as its package configures it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
from aiohttp import ClientSession

from entrepot.live import Live
from entrepot.mirror import Mirror
from entrepot.watching import watching
from tests.admin.conftest import admin_of
from tests.support.processes import Program, free_port

CONFIG = """\
daemon off; pid {folder}/pid; error_log stderr; events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {admin}; }} }}
}}
"""


@pytest.mark.needs("nginx")
async def test_a_document_comes_through_nginx_though_no_other_follows(
    running: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("entrepot.watching.LIVE_SECONDS", 3600.0)
    async with watching(running) as running.history, admin_of(running) as admin:
        file, port = tmp_path / "nginx.conf", free_port()
        file.write_text(CONFIG.format(folder=tmp_path, port=port, admin=admin._base_url))
        argv = ["nginx", "-e", "stderr", "-c", str(file)]
        with Program(argv, tmp_path / "log", {"PATH": f"{os.environ['PATH']}:/usr/sbin"}) as nginx:
            await asyncio.to_thread(nginx.wait_port, port)
            async with ClientSession() as client, client.get(f"http://127.0.0.1:{port}/api/live") as answer:
                line = await asyncio.wait_for(answer.content.readline(), 30)
    assert msgspec.json.decode(line, type=Live).state == "ready"
