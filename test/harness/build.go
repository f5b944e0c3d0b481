package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// Programs are the paths of this module's binaries, built from the working tree.
type Programs struct {
	// Manager is cmd/etcd-manager, Ctl is cmd/etcd-manager-ctl. Both are static.
	Manager, Ctl string
}

// build is done once by a test binary; built is its directory.
var (
	build = sync.OnceValues(buildPrograms)
	built atomic.Pointer[string]
)

// Build compiles the programs once for each test binary; call Main from TestMain so that they are removed again.
func Build(t testing.TB) Programs {
	t.Helper()
	p, err := build()
	if err != nil {
		t.Fatalf("build the programs: %v", err)
	}
	return p
}

// Main runs the tests and removes what Build has made. It returns the exit code.
func Main(m *testing.M) int {
	code := m.Run()
	if dir := built.Load(); dir != nil {
		_ = os.RemoveAll(*dir)
	}
	return code
}

func buildPrograms() (Programs, error) {
	root, err := moduleRoot()
	if err != nil {
		return Programs{}, err
	}
	dir, err := os.MkdirTemp("", "etcd-manager-test-")
	if err != nil {
		return Programs{}, err
	}
	built.Store(&dir)
	cmd := exec.Command("go", "build", "-o", dir+"/", "./cmd/etcd-manager", "./cmd/etcd-manager-ctl")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return Programs{}, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return Programs{Manager: filepath.Join(dir, "etcd-manager"), Ctl: filepath.Join(dir, "etcd-manager-ctl")}, nil
}

// moduleRoot finds this module's root above the working directory, which for a test is its package.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "cmd", "etcd-manager", "main.go")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no directory above this one holds cmd/etcd-manager")
		}
		dir = parent
	}
}
