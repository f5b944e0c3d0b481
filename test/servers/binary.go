// Package servers gives tests the real programs that they need: etcd of several versions and S3 servers.
//
// The programs are built from Go modules of their own under test/tools, once for all tests, one at a time on a machine,
// into the user's cache directory. They are static, so that they also run in an empty container. The package is for tests only.
package servers

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tool is a program: the module under test/tools that names its version, and its package. Without a module it is this module
// that names the version.
type tool struct{ module, pkg string }

// tools returns all programs that are built from modules.
func tools() map[string]tool {
	return map[string]tool{
		"etcd-3.5":     {"etcd-3.5", "go.etcd.io/etcd/server/v3"},
		"etcdctl-3.5":  {"etcd-3.5", "go.etcd.io/etcd/etcdctl/v3"},
		"etcdutl-3.5":  {"etcd-3.5", "go.etcd.io/etcd/etcdutl/v3"},
		"etcd-3.5-old": {"etcd-3.5-old", "go.etcd.io/etcd/server/v3"},
		// It is what the manager holds as well: when that has been built there is nothing left to compile.
		"etcd-3.6":    {"", "go.etcd.io/etcd/server/v3"},
		"etcdctl-3.6": {"etcd-3.6", "go.etcd.io/etcd/etcdctl/v3"},
		"etcdutl-3.6": {"etcd-3.6", "go.etcd.io/etcd/etcdutl/v3"},
		"etcd-3.7":    {"etcd-3.7", "go.etcd.io/etcd/server/v3"},
		"versitygw":   {"versitygw", "github.com/versity/versitygw/cmd/versitygw"},
		"minio":       {"minio", "github.com/minio/minio"},
		// It keeps objects of Google Cloud Storage in memory.
		"fake-gcs-server": {"fake-gcs-server", "github.com/fsouza/fake-gcs-server"},
		// It renders charts as its users do. It takes some minutes for the first time; only "make chart" needs it.
		"helm": {"helm", "helm.sh/helm/v3/cmd/helm"},
		// It takes about ten minutes for the first time; only "make e2e-kubernetes" needs it.
		"kube-apiserver": {"kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"},
	}
}

// etcd34 is the one program that no module offers; Debian packages it.
const etcd34 = "etcd-3.4"

// Binary returns the path of a program and builds it if that has not happened yet on this machine.
// Names are etcd-3.5 (3.5.35), etcd-3.5-old (3.5.21), etcd-3.6, etcd-3.7, etcdctl-3.5, etcdctl-3.6,
// etcdutl-3.5, etcdutl-3.6, versitygw, minio, fake-gcs-server, helm, kube-apiserver and etcd-3.4. The last
// comes from Debian's package; where that can't be had the test is skipped. Anything else that goes wrong
// fails the test.
func Binary(t testing.TB, name string) string {
	t.Helper()
	if name == etcd34 {
		path, err := debianEtcd()
		if err != nil {
			t.Skipf("etcd 3.4 is only packaged by Debian, and can't be had here: %v", err)
		}
		return path
	}
	ctx := context.Background()
	if d, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		if deadline, ok := d.Deadline(); ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, deadline.Add(-20*time.Second))
			defer cancel()
		}
	}
	path, err := buildOnce(ctx, name)
	if ctx.Err() != nil {
		t.Fatalf("build %s: the time for this package's tests is up; what is compiled already is kept, so run them again, or with -timeout 30m", name)
	}
	if err != nil {
		t.Fatalf("build %s: %v", name, err)
	}
	return path
}

// Names are those of all programs that are built from modules.
func Names() []string { return slices.Sorted(maps.Keys(tools())) }

// Build is Binary for what is not a test, without etcd-3.4.
func Build(name string) (string, error) { return buildOnce(context.Background(), name) }

func buildOnce(ctx context.Context, name string) (string, error) {
	tl, ok := tools()[name]
	if !ok {
		return "", errors.New("no such program")
	}
	module, path, err := locate(name, tl)
	if err != nil {
		return "", err
	}
	if isFile(path) {
		return path, nil
	}
	// One build at a time on a machine: each uses all cores.
	unlock, err := lockBase(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	if isFile(path) {
		return path, nil
	}
	return path, build(ctx, name, module, tl.pkg, path)
}

// locate returns the directory of a program's module and the path that the program has or will have.
func locate(name string, tl tool) (module, path string, err error) {
	root, err := moduleRoot()
	if err != nil {
		return "", "", err
	}
	module = root
	if tl.module != "" {
		module = filepath.Join(root, "test", "tools", tl.module)
	}
	dir, err := cacheDir(module)
	return module, filepath.Join(dir, name), err
}

func build(ctx context.Context, name, module, pkg, path string) error {
	started := time.Now()
	fmt.Fprintf(os.Stderr, "building %s for the tests, once; this takes up to a few minutes\n", name)
	tmp := path + ".tmp"
	// No flag that changes how packages are compiled, such as -trimpath: what needs neither net nor os/user is then shared with this
	// module's tests, and with its static builds the whole standard library and what has the same version.
	cmd := exec.CommandContext(ctx, "go", "build", "-ldflags=-s -w", "-o", tmp, pkg)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := runWithProgress(cmd, func() {
		fmt.Fprintf(os.Stderr, "still building %s after %s\n", name, time.Since(started).Round(time.Second))
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out.Bytes())
	}
	fmt.Fprintf(os.Stderr, "built %s in %s\n", name, time.Since(started).Round(time.Second))
	return os.Rename(tmp, path)
}

func runWithProgress(cmd *exec.Cmd, progress func()) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(30 * time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			progress()
		}
	}
}

// cacheDir returns the directory for what is built from module. Its name changes with everything that the result depends on.
func cacheDir(module string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", err
		}
		h.Write(data)
	}
	base, err := cacheBase()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(base, fmt.Sprintf("%x", h.Sum(nil)[:8]), "bin")
	return dir, os.MkdirAll(dir, 0o755)
}

func cacheBase() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(base, "etcd-manager-test"), nil
}

// moduleRoot finds this module's root above the working directory, which for a test is its package.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if isFile(filepath.Join(dir, "test", "tools", "versitygw", "go.mod")) {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no directory above this one holds test/tools")
		}
		dir = parent
	}
}

func isFile(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

// lockBase waits for the exclusive lock of the cache, which also ends with the process.
func lockBase(ctx context.Context) (unlock func(), err error) {
	base, err := cacheBase()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(base, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	started := time.Now()
	for reported := false; ; {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			if reported {
				fmt.Fprintf(os.Stderr, "waited %s for another build\n", time.Since(started).Round(time.Second))
			}
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
		if !reported {
			reported = true
			fmt.Fprintf(os.Stderr, "waiting for another build, which holds %s\n", f.Name())
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another build: %w", ctx.Err())
		}
	}
}

// debianEtcd returns etcd 3.4 as it is installed, or unpacks Debian's package into the cache.
func debianEtcd() (string, error) {
	const installed = "/usr/bin/etcd"
	if isVersion34(installed) {
		return installed, nil
	}
	base, err := cacheBase()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(base, etcd34)
	path := filepath.Join(dir, "usr", "bin", "etcd")
	if isVersion34(path) {
		return path, nil
	}
	unlock, err := lockBase(context.Background())
	if err != nil {
		return "", err
	}
	defer unlock()
	if isVersion34(path) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, script := range []string{"apt-get download etcd-server", "dpkg -x etcd-server_*.deb . && rm -f etcd-server_*.deb"} {
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w: %s", script, err, strings.TrimSpace(string(out)))
		}
	}
	if !isVersion34(path) {
		return "", errors.New("the package does not hold etcd 3.4")
	}
	return path, nil
}

func isVersion34(path string) bool {
	out, err := exec.Command(path, "--version").Output()
	return err == nil && strings.Contains(string(out), "etcd Version: 3.4.")
}
