// Package systemd holds the units of contrib/systemd to what systemd itself says of them. That the manager works with what its unit leaves
// it is seen by the test of docs/quickstart.md.
package systemd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// units are all units, with the highest exposure that each may have: 0 is none, 10 is a service without any limits.
func units() map[string]float64 {
	return map[string]float64{"systemd/etcd-manager.service": 3.5, "systemd/etcd-backup.service": 2.5,
		"etcd-backup/k3s.service": 2.5, "etcd-backup/rke2.service": 2.5, "etcd-backup/etcd.service": 2.5}
}

const dir = "../../contrib"

// analyze runs systemd-analyze, which needs no running systemd.
func analyze(t *testing.T, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze isn't installed here (Debian: systemd)")
	}
	out, err := exec.Command("systemd-analyze", append([]string{"--no-pager"}, args...)...).CombinedOutput()
	return string(out), err
}

// installed is a copy of a unit whose programs exist, which verify asks for.
func installed(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	testutil.Must(t, err)
	program := "etcd-backup"
	if strings.Contains(name, "etcd-manager.service") {
		program = "etcd-manager"
	}
	path := filepath.Join(t.TempDir(), program+".service")
	text := strings.ReplaceAll(string(data), "ExecStart=/usr/local/bin/"+program+" ", "ExecStart="+testutil.Self(t)+" ")
	if text == string(data) {
		t.Fatalf("%s starts another program than its own", name)
	}
	testutil.Must(t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

// TestAllUnits finds units that the tests don't know.
func TestAllUnits(t *testing.T) {
	list, err := filepath.Glob(filepath.Join(dir, "*", "*.service"))
	testutil.Must(t, err)
	for _, path := range list {
		if _, ok := units()[strings.TrimPrefix(path, dir+"/")]; !ok {
			t.Errorf("no test knows %s", path)
		}
	}
	if len(list) != len(units()) {
		t.Errorf("there are %v", list)
	}
}

// TestNotify: systemd is told by the main process alone when a unit is ready, and gets signs of life. The programs' tests see that they
// come.
func TestNotify(t *testing.T) {
	for name := range units() {
		data, err := os.ReadFile(filepath.Join(dir, name))
		testutil.Must(t, err)
		for _, want := range []string{"Type=notify", "NotifyAccess=main", "TimeoutStartSec=", "WatchdogSec="} {
			if !strings.Contains(string(data), "\n"+want) {
				t.Errorf("%s lacks %s", name, want)
			}
		}
	}
}

func TestVerify(t *testing.T) {
	for name := range units() {
		if out, err := analyze(t, "verify", installed(t, name)); err != nil || strings.Contains(out, ".service") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

var exposure = regexp.MustCompile(`Overall exposure level for \S+: (\d+\.\d+)`)

func TestSecurity(t *testing.T) {
	if out, err := analyze(t, "--version"); err != nil || !offline(out) {
		t.Skipf("this systemd-analyze can't judge files (--offline, from systemd 250 on): %v, %s", err, out)
	}
	for name, most := range units() {
		out, err := analyze(t, "security", "--offline=true", fmt.Sprintf("--threshold=%d", int(most*10)), installed(t, name))
		m := exposure.FindStringSubmatch(out)
		if m == nil {
			t.Errorf("%s: %v\n%s", name, err, out)
			continue
		}
		got, perr := strconv.ParseFloat(m[1], 64)
		testutil.Must(t, perr)
		t.Logf("%s: exposure %.1f of at most %.1f", name, got, most)
		if err != nil || got > most {
			t.Errorf("%s: exposure %.1f, at most %.1f is allowed: %v\n%s", name, got, most, err, out)
		}
	}
}

// offline tells by the version whether units can be judged that aren't loaded.
func offline(version string) bool {
	m := regexp.MustCompile(`^systemd (\d+)`).FindStringSubmatch(version)
	if m == nil {
		return false
	}
	n, err := strconv.Atoi(m[1])
	return err == nil && n >= 250
}
