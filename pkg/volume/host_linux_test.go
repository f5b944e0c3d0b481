package volume

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMountInTheHost: from a container, tools run and mounts are made where process 1 is, and this process's own mounts stay as they are.
func TestMountInTheHost(t *testing.T) {
	needLoop(t)
	dev := loop(t, image(t, 32))
	path, err := findTool("unshare")
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	// Another mount namespace stands for the machine; its process 1 is this one.
	machine := exec.Command(path, "--mount", "--propagation", "private", "sleep", "600")
	if err := machine.Start(); err != nil {
		t.Skipf("skipped: no mount namespace can be made: %v", err)
	}
	t.Cleanup(func() {
		_ = machine.Process.Kill()
		_ = machine.Wait()
	})
	ns := func(pid string) string {
		s, err := os.Readlink(filepath.Join("/proc", pid, "ns/mnt"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	pid, own := strconv.Itoa(machine.Process.Pid), ns("self")
	for end := time.Now().Add(10 * time.Second); ns(pid) == ns("self"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Skip("skipped: no mount namespace was made")
		}
	}
	dir := t.TempDir()
	proc := filepath.Join(dir, "proc")
	if err := os.Mkdir(proc, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join("/proc", pid), filepath.Join(proc, "1")); err != nil {
		t.Fatal(err)
	}
	before, err := readMounts()
	if err != nil {
		t.Fatal(err)
	}
	m := &Mounter{Host: InHost{Proc: proc, Root: filepath.Join(dir, "rootfs")}, Say: t.Logf}
	point := filepath.Join(dir, "point")
	v, err := m.Mount(t.Context(), dev, point)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(proc, "1/root", point); v.Dir != want {
		t.Errorf("seen at %s, want %s", v.Dir, want)
	}
	if err := os.WriteFile(filepath.Join(v.Dir, "file"), []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(point, "file")); err == nil {
		t.Error("it is mounted here too")
	}
	for range 20 { // whatever thread this is
		if err := m.Host.Do(func() error { return nil }); err != nil {
			t.Error(err)
		}
		now, err := readMounts()
		if err != nil || len(now) != len(before) {
			t.Errorf("this process has %d mounts, had %d: %v", len(now), len(before), err)
		}
	}
	if got := ns("self"); got != own {
		t.Errorf("the first thread of this process is in another mount namespace")
	}
	if err := v.Check(); err != nil {
		t.Error(err)
	}
	if err := v.Unmount(); err != nil {
		t.Error(err)
	}
	if err := v.Check(); err == nil {
		t.Error("it is there after it was unmounted")
	}
}

// TestNoHost: a container with process ids of its own can't mount on the machine, and is told why.
func TestNoHost(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/proc/self", filepath.Join(dir, "1")); err != nil {
		t.Fatal(err)
	}
	err := InHost{Proc: dir}.Do(func() error { return nil })
	if err == nil || !strings.Contains(err.Error(), "hostPID: true") {
		t.Errorf("got %v", err)
	}
}

// TestUnmountElsewhere: a container that was started while the volume was mounted has a copy of the
// mount, which keeps the device in use; it goes with the mount, unless something in that container
// uses it.
func TestUnmountElsewhere(t *testing.T) {
	needLoop(t)
	dev := loop(t, image(t, 32))
	path, err := findTool("unshare")
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	point := filepath.Join(t.TempDir(), "master-vol-1")
	container := func(dir string) (end func()) {
		c := exec.Command(path, "--mount", "--propagation", "private", "sleep", "600")
		c.Dir = dir
		if err := c.Start(); err != nil {
			t.Skipf("skipped: no mount namespace can be made: %v", err)
		}
		end = func() {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
		t.Cleanup(end)
		for stop := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			comm, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(c.Process.Pid), "comm"))
			if strings.TrimSpace(string(comm)) == "sleep" {
				return end
			}
			if time.Now().After(stop) {
				t.Skip("skipped: no mount namespace was made")
			}
		}
	}
	free := func() bool {
		f, err := os.OpenFile(dev, os.O_RDONLY|syscall.O_EXCL, 0)
		if err == nil {
			f.Close()
		}
		return err == nil
	}
	v, err := mount(t, dev, point)
	if err != nil {
		t.Fatal(err)
	}
	container("/")
	end := container(point)
	if err := v.Unmount(); err == nil || !strings.Contains(err.Error(), "sleep") {
		t.Errorf("while a container uses it: %v", err)
	}
	if free() || v.Check() != nil {
		t.Error("it was taken away from who uses it")
	}
	end()
	if err := v.Unmount(); err != nil {
		t.Fatal(err)
	}
	if !free() {
		t.Error("the device is in use still")
	}
}
