"""A stand-in for the Hub on loopback: enough of its HTTP interface for huggingface_hub to upload and download files."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LocalHub:
    """Repositories in memory: `files[repository][path]` is content."""

    def __init__(self):
        self.files: dict[str, dict[str, bytes]] = {}
        self.refuse = False

    @staticmethod
    def commit_id(files: dict[str, bytes]) -> str:
        return hashlib.sha1(b"".join(path.encode() + content for path, content in sorted(files.items()))).hexdigest()

    @contextmanager
    def serve(self):
        """The server's address."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _send(self, status: int, body: bytes = b"", **headers: str):
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, values, status: int = 200):
        self._send(status, json.dumps(values).encode(), Content_Type="application/json")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.hub.refuse:
            self._json({"error": "You don't have the rights to create a model there"}, 403)
        elif self.path == "/api/validate-yaml":
            self._json({"warnings": [], "errors": []})
        elif self.path == "/api/repos/create":
            values = json.loads(body)
            repository = f"{values['organization']}/{values['name']}" if values.get("organization") else values["name"]
            self.hub.files.setdefault(repository, {".gitattributes": b""})
            self._json({"url": f"http://{self.headers['Host']}/{repository}"})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif "/commit/" in self.path:
            repository = self.path.removeprefix("/api/models/").split("/commit/")[0]
            files = self.hub.files[repository]
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            address = f"http://{self.headers['Host']}/{repository}/commit/{self.hub.commit_id(files)}"
            self._json({"success": True, "commitOid": self.hub.commit_id(files), "commitUrl": address})
        else:
            self._json({"error": f"no such thing: {self.path}"}, 404)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if "/resolve/" in path:
            repository, name = path[1:].split("/resolve/")
            content = self.hub.files.get(repository, {}).get(name.split("/", 1)[1])
            if content is None:
                self._send(404, X_Error_Code="EntryNotFound")
                return
            commit = self.hub.commit_id(self.hub.files[repository])
            self._send(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit)
        elif path.startswith("/api/models/"):
            repository = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            files = self.hub.files.get(repository)
            if files is None:
                self._send(404, X_Error_Code="RepoNotFound")
            elif "/tree/" in path:
                below = "".join(f"{part}/" for part in path.split("/tree/")[1].split("/")[1:])
                found = [{"type": "file", "path": p, "size": len(c)} for p, c in files.items() if p.startswith(below)]
                self._json(found) if found else self._send(404, X_Error_Code="EntryNotFound")
            else:
                siblings = [{"rfilename": name} for name in files]
                self._json({"id": repository, "sha": self.hub.commit_id(files), "siblings": siblings, "tags": []})
        else:
            self._json({"error": f"no such thing: {path}"}, 404)
