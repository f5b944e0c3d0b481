package packages

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// entries are the files of a tar.
func entries(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		testutil.Must(t, err)
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" {
			t.Errorf("%s belongs to %d:%d %s", h.Name, h.Uid, h.Gid, h.Uname)
		}
		data, err := io.ReadAll(tr)
		testutil.Must(t, err)
		if h.Linkname != "" {
			data = []byte("-> " + h.Linkname)
		}
		all[h.Name] = data
	}
}

// descriptor is what refers to a blob.
type descriptor struct {
	Digest   string
	Size     int
	Platform struct{ Architecture string }
}

// checkImage: every blob has its digest, and each architecture has a manifest with labels and the programs of that architecture.
func checkImage(t *testing.T, dir string) {
	t.Helper()
	path := filepath.Join(dir, "image", "etcd-manager.oci.tar")
	f, err := os.Open(path)
	testutil.Must(t, err)
	defer f.Close()
	all := entries(t, f)
	get := func(d descriptor, to any) []byte {
		t.Helper()
		data := all["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if sum := fmt.Sprintf("sha256:%x", sha256.Sum256(data)); sum != d.Digest || len(data) != d.Size {
			t.Fatalf("blob %s has %d bytes of %d and is %s", d.Digest, len(data), d.Size, sum)
		}
		if to != nil {
			testutil.Must(t, json.Unmarshal(data, to))
		}
		return data
	}
	var top, index struct{ Manifests []descriptor }
	testutil.Must(t, json.Unmarshal(all["index.json"], &top))
	get(top.Manifests[0], &index)
	digest, err := os.ReadFile(filepath.Join(dir, "image", "DIGEST"))
	testutil.Must(t, err)
	t.Logf("the image is %s", bytes.TrimSpace(digest))
	if strings.TrimSpace(string(digest)) != top.Manifests[0].Digest || len(index.Manifests) != 2 {
		t.Errorf("the index is %s and has %d manifests", top.Manifests[0].Digest, len(index.Manifests))
	}
	for _, d := range index.Manifests {
		var manifest struct {
			Config descriptor
			Layers []descriptor
		}
		get(d, &manifest)
		var config struct {
			Architecture string
			Config       struct{ Labels map[string]string }
			Rootfs       struct {
				DiffIDs []string `json:"diff_ids"`
			}
		}
		get(manifest.Config, &config)
		z, err := gzip.NewReader(bytes.NewReader(get(manifest.Layers[0], nil)))
		testutil.Must(t, err)
		layer, err := io.ReadAll(z)
		testutil.Must(t, err)
		files, arch := entries(t, bytes.NewReader(layer)), d.Platform.Architecture
		if config.Architecture != arch || config.Rootfs.DiffIDs[0] != fmt.Sprintf("sha256:%x", sha256.Sum256(layer)) ||
			config.Config.Labels["org.opencontainers.image.version"] != "v0.0.1" || len(config.Config.Labels["org.opencontainers.image.revision"]) != 40 {
			t.Errorf("%s: %+v", arch, config)
		}
		program, err := os.ReadFile(filepath.Join(dir, "linux-"+arch, "etcd-manager"))
		testutil.Must(t, err)
		if !bytes.Equal(files["ko-app/etcd-manager"], program) || string(files["bin/sh"]) != "-> ../go-runner" || len(files["etc/ssl/certs/ca-certificates.crt"]) == 0 {
			t.Errorf("%s lacks files, or has others", arch)
		}
	}
	checkDocker(t, path)
}

// checkDocker has a Docker engine start the image.
func checkDocker(t *testing.T, path string) {
	t.Helper()
	if exec.Command("docker", "version").Run() != nil {
		t.Log("no Docker engine answers: nobody has started the image")
		return
	}
	command(t, ".", "docker", "load", "--input", path)
	t.Cleanup(func() {
		_ = exec.Command("docker", "rmi", "etcd-manager:v0.0.1-amd64", "etcd-manager:v0.0.1-arm64").Run()
	})
	if out := command(t, ".", "docker", "run", "--rm", "--network=none", "etcd-manager:v0.0.1-amd64", "version"); !strings.Contains(out, "v0.0.1") {
		t.Errorf("the image says %s", out)
	}
}
