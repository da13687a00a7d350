"""The part of the small W&B server that keeps artifacts: the answers to the client's questions."""

import base64
import json
from dataclasses import dataclass, field

TEAM = "our-lab"


@dataclass
class StoredArtifact:
    """A version of an artifact."""

    id: str
    entity: str
    project: str
    name: str
    kind: str
    version: int
    digest: str
    metadata: str
    run: str | None
    aliases: list[str] = field(default_factory=list)
    manifest: bytes = b""
    state: str = "PENDING"

    @property
    def files(self):
        return json.loads(self.manifest)["contents"]


class Artifacts:
    """Operations by their names; `artifacts`, `blobs`, `runs`, `url` are a Server's."""

    def ask_ArtifactType(self, name, **_):
        found = self._find(name)
        kind = {"artifactType": {"name": found.kind}} if found else None
        return {"project": {"artifact": kind}}

    def ask_CreateArtifact(self, input):
        v = input
        name = v["artifactCollectionName"]
        for made in self.artifacts:  # the same content is the same version
            if made.name == name and made.digest == v["digest"] and made.state == "COMMITTED":
                self._alias(made, v["aliases"])
                return {"createArtifact": {"artifact": self._created(made)}}
        made = StoredArtifact(
            id=f"A{len(self.artifacts)}",
            entity=v["entityName"],
            project=v["projectName"],
            name=name,
            kind=v["artifactTypeName"],
            version=sum(a.name == name for a in self.artifacts),
            digest=v["digest"],
            metadata=v.get("metadata") or "{}",
            run=v.get("runName"),
        )
        made.aliases_wanted = v["aliases"]
        self.artifacts.append(made)
        return {"createArtifact": {"artifact": self._created(made)}}

    def _created(self, made):
        latest = [a for a in self.artifacts if a.name == made.name and a.state == "COMMITTED"]
        last = {"id": latest[-1].id, "versionIndex": latest[-1].version} if latest else None
        sequence = {"id": f"S{made.name}", "latestArtifact": last}
        return {"id": made.id, "state": made.state, "artifactSequence": sequence}

    def _alias(self, made, aliases):
        names = {alias["alias"] for alias in aliases}
        for other in self.artifacts:
            if other.name == made.name:
                other.aliases = [a for a in other.aliases if a not in names]
        made.aliases += sorted(names)

    def _by_id(self, artifact_id):
        return next(a for a in self.artifacts if a.id == artifact_id)

    def _find(self, name):
        """`name:alias`, `name:v0` or `entity/project/name:...`; None if there is none."""
        collection, _, alias = name.split("/")[-1].partition(":")
        for made in reversed(self.artifacts):
            names = [*made.aliases, f"v{made.version}"]
            if (made.name, made.state) == (collection, "COMMITTED") and alias in names:
                return made
        return None

    def ask_GetDefaultEntity(self):
        return {"viewer": {"id": "VTE=", "entity": TEAM}}

    def ask_ServerFeaturesQuery(self):
        return {"serverInfo": {"features": []}}

    def _described(self, made):
        project = {"id": "P1", "internalId": "UDE=", "name": made.project}
        project |= {"entity": {"name": made.entity}}
        sequence = {"__typename": "ArtifactSequence", "name": made.name, "project": project}
        aliases = [
            {
                "__typename": "ArtifactAlias",
                "id": alias,
                "alias": alias,
                "artifactCollection": sequence,
            }
            for alias in made.aliases
        ]
        return {
            "__typename": "Artifact",
            "id": made.id,
            "artifactSequence": sequence,
            "versionIndex": made.version,
            "artifactType": {"name": made.kind},
            "description": None,
            "metadata": made.metadata,
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": made.state,
            "size": sum(file["size"] for file in made.files.values()),
            "digest": made.digest,
            "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": "c",
            "fileCount": len(made.files),
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-01-01T00:00:00Z",
            "aliases": aliases,
        }

    def ask_ArtifactByID(self, id, **_):
        return {"artifact": self._described(self._by_id(id))}

    def ask_ArtifactMembershipByName(self, name, **_):
        made = self._find(name)
        if made is None:
            return {"project": {"artifactCollectionMembership": None}}
        described = self._described(made)
        member = {
            "__typename": "ArtifactCollectionMembership",
            "id": f"M{made.id}",
            "versionIndex": made.version,
            "createdAt": described["createdAt"],
            "aliases": described["aliases"],
            "artifactCollection": described["artifactSequence"],
            "artifact": described,
        }
        return {"project": {"artifactCollectionMembership": member}}

    def ask_FetchArtifactManifest(self, id):
        url = f"{self.url}/blob/manifest/{id}"
        return {"artifact": {"currentManifest": {"file": {"directUrl": url}}}}

    def ask_UseArtifact(self, **v):
        given = v.get("input", v)
        self.runs[given["runName"]].used.append(given["artifactID"])
        return {"useArtifact": {"artifact": self._described(self._by_id(given["artifactID"]))}}

    def ask_FetchArtifactDigestAlgorithm(self, **_):
        return {"project": {"artifactType": {"artifactCollection": None}}}

    def ask_CreateArtifactManifest(self, artifactID, **_):
        url = f"{self.url}/blob/manifest/{artifactID}"
        file = {"id": f"F{artifactID}", "name": "wandb_manifest.json", "displayName": "m"}
        file |= {"uploadUrl": url, "uploadHeaders": []}
        made = {"id": f"M{artifactID}", "file": file}
        return {"createArtifactManifest": {"artifactManifest": made}}

    def ask_UpdateArtifactManifest(self, artifactManifestID, **_):
        url = f"{self.url}/blob/manifest/{artifactManifestID[1:]}"
        made = {"id": artifactManifestID, "file": {"uploadUrl": url, "uploadHeaders": []}}
        return {"updateArtifactManifest": {"artifactManifest": made}}

    def ask_CreateArtifactFiles(self, input, **_):
        edges = []
        for file in input["artifactFiles"]:
            digest = base64.b64decode(file["md5"]).hex()
            where = f"{self.url}/blob/md5/{digest}"
            if f"md5/{digest}" in self.blobs:
                where = None  # it is there
            node = {"id": digest, "name": file["name"], "displayName": file["name"]}
            node |= {"uploadUrl": where, "uploadHeaders": [], "uploadMultipartUrls": None}
            node |= {"storagePath": digest, "artifact": {"id": file["artifactID"]}}
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def ask_CommitArtifact(self, artifactID, **_):
        made = self._by_id(artifactID)
        made.manifest = self.blobs[f"manifest/{artifactID}"]
        made.state = "COMMITTED"
        self._alias(made, made.aliases_wanted)
        return {"commitArtifact": {"artifact": {"id": made.id, "digest": made.digest}}}
