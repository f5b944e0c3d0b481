package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// imageFile is the image of all architectures: a layout of OCI that "docker load" takes, too.
const imageFile = "etcd-manager.oci.tar"

// blobs are what an image consists of, each under its digest.
type blobs struct{ files []blob }

type blob struct {
	name string
	data []byte
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

const (
	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// add takes a blob in.
func (b *blobs) add(mediaType string, data []byte) descriptor {
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	b.files = append(b.files, blob{"blobs/sha256/" + sum, data})
	return descriptor{MediaType: mediaType, Digest: "sha256:" + sum, Size: len(data)}
}

// object takes a JSON object in. Keys of maps are sorted, so that the same content has the same bytes.
func (b *blobs) object(mediaType string, value any) (descriptor, error) {
	data, err := json.Marshal(value)
	return b.add(mediaType, data), err
}

// labels are the image's annotations of OCI.
func (r *release) labels() map[string]string {
	const at = "org.opencontainers.image."
	return map[string]string{at + "title": "etcd-manager", at + "version": r.program, at + "revision": r.commit, at + "created": r.date.Format(time.RFC3339),
		at + "source": "https://github.com/etcd-manager/etcd-manager", at + "licenses": "Apache-2.0",
		at + "description": "Forms, keeps, backs up and restores etcd clusters"}
}

// image makes the image, with what images/etcd-manager/Dockerfile has.
func (r *release) image() error {
	var b blobs
	var manifests []descriptor
	var loads []map[string]any // what docker load reads
	for _, arch := range architectures {
		manifest, load, err := r.imageOf(arch, &b)
		if err != nil {
			return err
		}
		manifests, loads = append(manifests, manifest), append(loads, load)
	}
	index, err := b.object(indexType, map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": manifests, "annotations": r.labels()})
	if err != nil {
		return err
	}
	digest := index.Digest
	index.Annotations = map[string]string{"org.opencontainers.image.ref.name": r.program}
	top, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": []descriptor{index}})
	if err != nil {
		return err
	}
	load, err := json.Marshal(loads)
	if err != nil {
		return err
	}
	b.files = append(b.files, blob{"index.json", top}, blob{"manifest.json", load}, blob{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)})
	var out bytes.Buffer
	w := r.tar(&out)
	for _, f := range b.files {
		if err := w.file(f.name, 0o644, f.data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	fmt.Printf("release %s: the image is %s\n", r.pkg, digest)
	return errorsOf(write(filepath.Join(r.out, "image", imageFile), out.Bytes(), 0o644),
		write(filepath.Join(r.out, "image", "DIGEST"), []byte(digest+"\n"), 0o644))
}

// imageOf makes the image of one architecture: a layer, its settings and its manifest.
func (r *release) imageOf(arch string, b *blobs) (descriptor, map[string]any, error) {
	none := descriptor{}
	files, err := r.layer(arch)
	if err != nil {
		return none, nil, err
	}
	layer := b.add(layerType, zipped(files))
	config, err := b.object(configType, map[string]any{
		"architecture": arch, "os": "linux", "created": r.date.Format(time.RFC3339),
		"config":  map[string]any{"Env": []string{"PATH=/ko-app:/"}, "Entrypoint": []string{"/ko-app/etcd-manager"}, "Labels": r.labels()},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(files))}},
		"history": []any{map[string]any{"created": r.date.Format(time.RFC3339), "created_by": "make release"}},
	})
	if err != nil {
		return none, nil, err
	}
	manifest, err := b.object(manifestType, map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": config,
		"layers": []descriptor{layer}, "annotations": r.labels()})
	manifest.Platform = &platform{arch, "linux"}
	path := func(d descriptor) string { return "blobs/sha256/" + d.Digest[len("sha256:"):] }
	return manifest, map[string]any{"Config": path(config), "Layers": []string{path(layer)},
		"RepoTags": []string{"etcd-manager:" + r.program + "-" + arch}}, err
}

// archive is a tar in which everything belongs to root and has the time of the commit.
type archive struct {
	*tar.Writer
	date time.Time
}

func (r *release) tar(out *bytes.Buffer) archive { return archive{tar.NewWriter(out), r.date} }

func (a archive) file(name string, perm fs.FileMode, data []byte) error {
	if err := a.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: int64(perm), Size: int64(len(data)), ModTime: a.date}); err != nil {
		return err
	}
	_, err := a.Write(data)
	return err
}

// layer is what the image holds: the programs, where kOps and everybody else looks for them, and public certificate authorities.
func (r *release) layer(arch string) ([]byte, error) {
	var out bytes.Buffer
	w := r.tar(&out)
	for _, d := range []struct {
		name string
		mode int64
	}{{"bin/", 0o755}, {"etc/", 0o755}, {"etc/ssl/", 0o755}, {"etc/ssl/certs/", 0o755}, {"ko-app/", 0o755}, {"tmp/", 0o1777}} {
		if err := w.WriteHeader(&tar.Header{Name: d.name, Typeflag: tar.TypeDir, Mode: d.mode, ModTime: r.date}); err != nil {
			return nil, err
		}
	}
	for _, f := range []struct {
		name, from string
		mode       fs.FileMode
	}{
		{"etc/ssl/certs/ca-certificates.crt", authorities, 0o644},
		{"etcd-backup", r.binary("etcd-backup", arch), 0o755},
		{"go-runner", r.binary("go-runner", arch), 0o755},
		{"ko-app/etcd-manager", r.binary("etcd-manager", arch), 0o755},
		{"ko-app/etcd-manager-ctl", r.binary("etcd-manager-ctl", arch), 0o755},
	} {
		data, err := os.ReadFile(f.from)
		if err != nil {
			return nil, err
		}
		if err := w.file(f.name, f.mode, data); err != nil {
			return nil, err
		}
	}
	// kOps up to 1.32 starts /etcd-manager, and up to 1.35.1 through /bin/sh: go-runner answers for exactly that command line.
	for _, l := range [][2]string{{"bin/sh", "../go-runner"}, {"etcd-manager", "ko-app/etcd-manager"}, {"etcd-manager-ctl", "ko-app/etcd-manager-ctl"}} {
		if err := w.WriteHeader(&tar.Header{Name: l[0], Typeflag: tar.TypeSymlink, Linkname: l[1], Mode: 0o777, ModTime: r.date}); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}

// authorities are those that the machine trusts which makes the release: the one thing in the image that isn't in the repository.
const authorities = "/etc/ssl/certs/ca-certificates.crt"
