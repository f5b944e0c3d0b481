// Package detect finds the etcds that something else runs on a machine, and what a sidecar beside them needs: client URLs and
// certificates. It only reads files below a root directory. It must never write, and never ask the network.
package detect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/adopt/source"
)

// Kind is what runs an etcd.
type Kind string

// What can run an etcd.
const (
	Kubeadm Kind = "kubeadm"
	K3s     Kind = "k3s"
	RKE2    Kind = "rke2"
	Talos   Kind = "talos"
	Systemd Kind = "systemd"
)

// ErrNoEtcd: nothing on the machine runs an etcd that is known here.
var ErrNoEtcd = errors.New("no etcd was found on this machine")

// Missing is something that a sidecar would not work without.
type Missing struct {
	// What is missing or wrong, and Do what to do about it.
	What, Do string
}

// Etcd is an etcd of the machine. All paths are the machine's, without the root directory.
type Etcd struct {
	Kind Kind
	// Where is the file that says how it is run; Unit is the unit that runs it, or what runs it.
	Where, Unit string
	DataDir     string
	// URL is where a program on this machine reaches it.
	URL string
	// CA, Cert and Key are for a client; empty without TLS, or if they are missing.
	CA, Cert, Key string
	// Name is the common name of the certificate: the user of etcd, if etcd has users.
	Name    string
	Missing []Missing
}

// Look finds all etcds of the machine whose files are below root. An error that isn't ErrNoEtcd is of a file that can't be read.
func Look(root string, now time.Time) ([]Etcd, error) {
	l := look{root: root, now: now}
	for _, find := range []func() error{l.staticPods, l.k3s, l.rke2, l.talos, l.units} {
		if err := find(); err != nil {
			return nil, err
		}
	}
	if len(l.found) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNoEtcd, strings.Join(append(l.hints,
			"looked for /etc/kubernetes/manifests/etcd.yaml (kubeadm), the files of k3s, RKE2 and Talos, and for units of systemd that start etcd"), "; "))
	}
	return l.found, nil
}

// look is one search.
type look struct {
	root  string
	now   time.Time
	found []Etcd
	hints []string // why there may be none
}

// at is where a file of the machine lies.
func (l *look) at(path string) string { return filepath.Join(l.root, path) }

func (l *look) exists(path string) bool {
	_, err := os.Stat(l.at(path))
	return err == nil
}

// manifests is where kubeadm has the kubelet look.
const manifests = "/etc/kubernetes/manifests"

// staticPods finds kubeadm's.
func (l *look) staticPods() error {
	path := filepath.Join(manifests, "etcd.yaml")
	if !l.exists(path) {
		if l.exists("/etc/kubernetes/manifests/kube-apiserver.yaml") {
			l.hints = append(l.hints, "kubeadm runs an API server here but no etcd: it uses an etcd elsewhere, so run this beside that one")
		}
		return nil
	}
	s, err := source.FromManifest(l.at(path))
	if err != nil {
		return err
	}
	e := Etcd{Kind: Kubeadm, Where: path, Unit: "the kubelet (a static pod)"}
	dir := filepath.Dir(s.Values["trusted-ca-file"])
	l.complete(&e, s.Values, []pair{
		{filepath.Join(dir, "healthcheck-client.crt"), filepath.Join(dir, "healthcheck-client.key")},
		{filepath.Join(filepath.Dir(dir), "apiserver-etcd-client.crt"), filepath.Join(filepath.Dir(dir), "apiserver-etcd-client.key")},
	}, "kubeadm init phase certs etcd-healthcheck-client")
	return nil
}

func (l *look) k3s() error  { return l.rancher(K3s, "k3s") }
func (l *look) rke2() error { return l.rancher(RKE2, "rke2-server") }

// rancher finds the etcd of k3s and RKE2, which have the same layout.
func (l *look) rancher(kind Kind, unit string) error {
	dir := "/var/lib/rancher/" + string(kind)
	config := "/etc/rancher/" + string(kind) + "/config.yaml"
	settings, err := source.FromConfigFile(l.at(config))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if d := settings.Values["data-dir"]; d != "" {
			dir = d
		}
		if settings.Values["datastore-endpoint"] != "" {
			l.hints = append(l.hints, fmt.Sprintf("%s keeps its data in the database of datastore-endpoint in %s, not in an etcd of its own", kind, config))
		}
	}
	path := filepath.Join(dir, "server/db/etcd/config")
	if !l.exists(path) {
		if l.exists(filepath.Join(dir, "server/db/state.db")) {
			l.hints = append(l.hints, fmt.Sprintf("%s keeps its data in SQLite, not in etcd; `%s server --cluster-init` moves them to etcd",
				kind, kind))
		}
		return nil
	}
	s, err := source.FromConfigFile(l.at(path))
	if err != nil {
		return err
	}
	if s.Values["data-dir"] == "" {
		s.Values["data-dir"] = filepath.Dir(path)
	}
	e := Etcd{Kind: kind, Where: path, Unit: unit}
	tls := filepath.Join(dir, "server/tls/etcd")
	if ca := filepath.Join(tls, "server-ca.crt"); s.Values["trusted-ca-file"] == "" && l.exists(ca) {
		s.Values["trusted-ca-file"] = ca
	}
	l.complete(&e, s.Values, []pair{{filepath.Join(tls, "client.crt"), filepath.Join(tls, "client.key")}},
		"systemctl restart "+unit+", which makes it")
	return nil
}

// talos finds the etcd of Talos, whose settings aren't in files.
func (l *look) talos() error {
	const secrets = "/system/secrets/etcd"
	if !l.exists(secrets) {
		if data, err := os.ReadFile(l.at("/etc/os-release")); err == nil && strings.Contains("\n"+string(data), "\nID=talos\n") {
			l.hints = append(l.hints, "this is Talos, but "+secrets+" isn't there: only control plane nodes have an etcd")
		}
		return nil
	}
	e := Etcd{Kind: Talos, Where: secrets, Unit: "Talos"}
	in := func(name string) string { return filepath.Join(secrets, name) }
	l.complete(&e, map[string]string{"data-dir": "/var/lib/etcd", "listen-client-urls": "https://127.0.0.1:2379",
		"trusted-ca-file": in("ca.crt"), "cert-file": in("server.crt"), "key-file": in("server.key")},
		[]pair{{in("admin.crt"), in("admin.key")}}, "talosctl reboot, which makes it")
	return nil
}

// units finds etcds that a unit of systemd starts.
func (l *look) units() error {
	seen := map[string]bool{}
	for _, dir := range source.UnitPaths() {
		list, err := filepath.Glob(filepath.Join(l.at(dir), "*.service"))
		if err != nil {
			return fmt.Errorf("look for units: %w", err)
		}
		for _, path := range list {
			name := filepath.Base(path)
			if seen[name] || strings.Contains(name, "@.") {
				continue // a better directory has it, or a template, which isn't started itself
			}
			seen[name] = true
			if err := l.unit(name, strings.TrimPrefix(path, strings.TrimSuffix(l.root, "/"))); err != nil {
				return err
			}
		}
	}
	return nil
}

// unit takes a unit if it starts etcd. Others may be whatever they are.
func (l *look) unit(name, where string) error {
	data, err := os.ReadFile(l.at(where))
	if err != nil && !strings.HasPrefix(name, "etcd") {
		return nil // a link to nothing, as of a masked or removed unit
	}
	if err == nil && !startsEtcd(string(data)) {
		return nil
	}
	s, err := source.FromUnitAt(l.root, name, source.UnitPaths())
	if err != nil {
		return err
	}
	e := Etcd{Kind: Systemd, Where: where, Unit: s.Unit}
	values := s.Values
	if file := values["config-file"]; file != "" { // etcd ignores all flags and variables then
		s, err := source.FromConfigFile(l.at(file))
		if err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
		e.Where, values = file, s.Values
	}
	if values["data-dir"] == "" && values["name"] != "" {
		values["data-dir"] = values["name"] + ".etcd"
	}
	l.complete(&e, values, nil, "")
	return nil
}

// startsEtcd tells whether a unit starts a program that is called etcd.
func startsEtcd(unit string) bool {
	for line := range strings.Lines(unit) {
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "ExecStart="); ok {
			program, _, _ := strings.Cut(strings.TrimLeft(command, "@-:+! "), " ")
			if filepath.Base(strings.Trim(program, `"'`)) == "etcd" {
				return true
			}
		}
	}
	return false
}

// Choose picks one of several: by its kind, by what runs it, or by the file that says how.
func Choose(list []Etcd, which string) (Etcd, error) {
	match := slices.DeleteFunc(slices.Clone(list), func(e Etcd) bool {
		return which != "" && which != string(e.Kind) && which != e.Unit && which != e.Unit+".service" && which != e.Where
	})
	if len(match) == 1 {
		return match[0], nil
	}
	var names []string
	for _, e := range list {
		names = append(names, fmt.Sprintf("%s: --etcd=%s", e.Kind, e.Where))
	}
	if len(match) == 0 {
		return Etcd{}, fmt.Errorf("--etcd=%s is none of those that were found (%s)", which, strings.Join(names, ", "))
	}
	return Etcd{}, fmt.Errorf("%d etcds were found; choose one (%s)", len(match), strings.Join(names, ", "))
}
