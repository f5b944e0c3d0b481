// Package packages makes releases, compares them, and installs, upgrades and removes the packages in a Debian root. It takes ten minutes
// and is a command of its own: make packages.
package packages

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

var wanted = flag.Bool("packages", false, "make releases and install them; that takes ten minutes")

// command runs a program and returns what it prints.
func command(t *testing.T, dir string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// release makes a release of a commit, in a clone at a path of its own.
func release(t *testing.T, commit string, args ...string) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	testutil.Must(t, err)
	clone := filepath.Join(t.TempDir(), "clone")
	command(t, root, "git", "clone", "-q", "--no-hardlinks", root, clone)
	command(t, clone, "git", "checkout", "-q", commit)
	out := filepath.Join(clone, "dist")
	command(t, filepath.Join(clone, "test/tools/release"), "go", append([]string{"run", ".", "-out", out}, args...)...)
	if text := command(t, clone, "git", "status", "--porcelain"); text != "" {
		t.Errorf("a release changes the tree:\n%s", text)
	}
	return out
}

// sums are the checksums of all files of a release.
func sums(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	testutil.Must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		testutil.Must(t, err)
		rel, err := filepath.Rel(dir, path)
		all[rel] = fmt.Sprintf("%x", sha256.Sum256(data))
		return err
	}))
	return all
}

func TestRelease(t *testing.T) {
	if !*wanted {
		t.Skip("only with -packages: it takes ten minutes")
	}
	commit := strings.TrimSpace(command(t, ".", "git", "rev-parse", "HEAD"))
	first := release(t, commit, "-version=0.0.1")
	second := release(t, commit, "-version=0.0.1")
	a, b := sums(t, first), sums(t, second)
	for name := range a {
		if a[name] != b[name] {
			t.Errorf("%s has other bytes in the second release", name)
		}
	}
	if len(a) != len(b) || len(a) < 60 {
		t.Errorf("%d and %d files", len(a), len(b))
	}
	t.Logf("two releases of %d files; SHA256SUMS is %s twice", len(a), a["SHA256SUMS"])
	listed := command(t, first, "sha256sum", "--check", "--quiet", "SHA256SUMS")
	if data, err := os.ReadFile(filepath.Join(first, "SHA256SUMS")); err != nil || bytes.Count(data, []byte("\n")) != len(a)-1 {
		t.Errorf("SHA256SUMS has not every file (%v): %s", err, listed)
	}
	checkContents(t, first)
	checkPackages(t, first)
	checkImage(t, first)
	t.Run("Debian", func(t *testing.T) {
		packages := func(dir string) []string {
			list, err := filepath.Glob(filepath.Join(dir, "packages", "*_amd64.deb"))
			testutil.Must(t, err)
			return list
		}
		installs(t, packages(first), packages(release(t, commit, "-version=0.0.2")))
	})
}

// checkContents: the SBOM has each program and everything in it, and no library is without its license.
func checkContents(t *testing.T, dir string) {
	var d struct {
		Version  string `json:"spdxVersion"`
		Packages []struct {
			Name     string `json:"name"`
			Version  string `json:"versionInfo"`
			Declared string `json:"licenseDeclared"`
		} `json:"packages"`
	}
	data, err := os.ReadFile(filepath.Join(dir, "etcd-manager.spdx.json"))
	testutil.Must(t, err)
	testutil.Must(t, json.Unmarshal(data, &d))
	have := map[string]string{}
	for _, p := range d.Packages {
		have[p.Name+"@"+p.Version] = p.Declared
	}
	for _, arch := range []string{"amd64", "arm64"} {
		for _, program := range []string{"etcd-manager", "etcd-manager-ctl", "etcd-backup"} {
			path := filepath.Join(dir, "linux-"+arch, program)
			info, err := buildinfo.ReadFile(path)
			testutil.Must(t, err)
			fi, err := os.Stat(path)
			testutil.Must(t, err)
			t.Logf("%s for %s: %d bytes", program, arch, fi.Size())
			if have[program+" for linux-"+arch+"@v0.0.1"] == "" {
				t.Errorf("the SBOM lacks %s for %s", program, arch)
			}
			for _, m := range info.Deps {
				if l := have[m.Path+"@"+m.Version]; l == "" || l == "NOASSERTION" {
					t.Errorf("%s of %s: license %q", m.Path, program, l)
				}
			}
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "THIRD-PARTY-LICENSES"))
	testutil.Must(t, err)
	if n := bytes.Count(text, []byte("\n==== ")) + 1; d.Version != "SPDX-2.3" || n != len(d.Packages)-6 {
		t.Errorf("%s: %d licenses for %d packages", d.Version, n, len(d.Packages))
	}
	if out := command(t, dir, "linux-amd64/etcd-manager", "version"); !strings.Contains(out, "v0.0.1, commit ") || strings.Contains(out, "with changes") {
		t.Errorf("the program says %s", out)
	}
}

// checkPackages: what the packages hold, and for whom to read.
func checkPackages(t *testing.T, dir string) {
	debs, err := filepath.Glob(filepath.Join(dir, "packages", "*.deb"))
	testutil.Must(t, err)
	rpms, err := filepath.Glob(filepath.Join(dir, "packages", "*.rpm"))
	testutil.Must(t, err)
	if len(debs) != 6 || len(rpms) != 6 {
		t.Errorf("packages: %v, %v", debs, rpms)
	}
	for _, path := range slices.Concat(debs, rpms) {
		fi, err := os.Stat(path)
		testutil.Must(t, err)
		t.Logf("%s: %d bytes", filepath.Base(path), fi.Size())
	}
	if _, err := exec.LookPath("rpm"); err == nil {
		for _, path := range rpms {
			out := command(t, dir, "rpm", "-qp", "--nosignature", "--qf",
				"%{NAME} %{VERSION} %{BUILDHOST}\n[%{FILEMODES:perms} %{FILEUSERNAME} %{FILEFLAGS:fflags} %{FILENAMES}\n]", path)
			service := !strings.Contains(path, "etcd-manager-ctl")
			if strings.Contains(out, "-rw------- root cn /etc/etcd-manager/") != service || !strings.Contains(out, "-rwxr-xr-x root  /usr/bin/") ||
				!strings.Contains(out, " 0.0.1 localhost\n") {
				t.Errorf("%s:\n%s", path, out)
			}
		}
	} else {
		t.Log("rpm isn't installed here (Debian: rpm); nobody has looked into the .rpm files")
	}
}
