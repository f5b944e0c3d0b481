package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/test/awsdouble"
)

// cloud is a region of the double whose volumes are loop devices and whose machines are containers:
// process 1 of a machine has its mounts and tools, and the manager's own container shares its
// process ids, as pods do that kubelet starts with hostPID.
type cloud struct {
	t *testing.T
	w *world
	*awsdouble.Cloud

	mu      sync.Mutex
	dir     string
	devices map[string]string // volume → loop device
	pids    map[string]int    // instance → process 1, as this machine numbers it
	url     string
}

// hostTools are what a machine has of its own, with the packages that Debian has them in.
func hostTools() []string {
	return []string{"blkid", "mkfs.ext4", "e2fsck", "resize2fs"}
}

// needLoops skips the test where loop devices can't be made, or where containers run on another machine.
func needLoops(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: loop devices need root")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("skipped: no loop devices: %v", err)
	}
	for _, tool := range append(hostTools(), "losetup", "ldd") {
		if _, err := lookTool(tool); err != nil {
			t.Skipf("skipped: %v", err)
		}
	}
}

func lookTool(name string) (string, error) {
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin"} {
		if path := filepath.Join(dir, name); exec.Command("test", "-x", path).Run() == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("this machine has no %s", name)
}

// machineImage has this machine's own tools with their libraries, and a process that does nothing.
var machineImage = sync.OnceValues(func() (string, error) {
	base, err := cutImage()
	if err != nil {
		return "", err
	}
	files, text := map[string]string{}, "FROM "+base+"\n"
	add := func(from, to string) error {
		real, err := filepath.EvalSymlinks(from)
		if err != nil {
			return err
		}
		name := strings.ReplaceAll(strings.TrimPrefix(to, "/"), "/", "_")
		if files[name] == "" {
			files[name] = real
			text += "COPY " + name + " " + to + "\n"
		}
		return nil
	}
	for _, tool := range hostTools() {
		path, err := lookTool(tool)
		if err != nil {
			return "", err
		}
		out, err := exec.Command("ldd", path).Output()
		if err != nil {
			return "", fmt.Errorf("libraries of %s: %w", path, err)
		}
		for _, field := range strings.Fields(string(out)) {
			if strings.HasPrefix(field, "/") {
				if err := add(field, field); err != nil {
					return "", err
				}
			}
		}
		if err := add(path, "/usr/sbin/"+tool); err != nil {
			return "", err
		}
	}
	if _, err := os.Stat("/etc/mke2fs.conf"); err == nil {
		if err := add("/etc/mke2fs.conf", "/etc/mke2fs.conf"); err != nil {
			return "", err
		}
	}
	return derived("machine", text, files)
})

// privileges are those of --privileged that volumes need. All of them aren't to be had where tests run in a container themselves.
func privileges() []string {
	return []string{"--cap-add", "ALL", "--cap-drop", "SYS_RESOURCE", "--device-cgroup-rule", "b 7:* rwm",
		"--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"}
}

// newCloud makes a region beside a world. EC2 is reached at the network's own address on this machine.
func newCloud(t *testing.T, ports ports) *cloud {
	t.Helper()
	needDocker(t)
	needLoops(t)
	c := &cloud{t: t, dir: t.TempDir(), devices: map[string]string{}, pids: map[string]int{}}
	t.Cleanup(c.detachAll) // after the world's containers are gone
	c.w = newWorld(t)
	c.w.ports = ports
	c.Cloud = awsdouble.New(awsdouble.Hooks{Attach: c.attached, Detach: c.detached, Create: c.created})
	c.url = c.serve(c.Cloud)
	return c
}

func (c *cloud) serve(h http.Handler) string {
	c.t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(c.w.address(1), "0"))
	if err != nil {
		c.t.Skipf("skipped: containers can't reach this machine: %v", err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.Serve(l) }()
	c.t.Cleanup(func() { _ = s.Close() })
	return "http://" + l.Addr().String()
}

// addVolume makes a volume of some MiB, blank.
func (c *cloud) addVolume(v awsdouble.Volume, mib int64) {
	c.t.Helper()
	if err := c.makeDevice(v.ID, mib); err != nil {
		c.t.Fatal(err)
	}
	c.AddVolume(v)
}

func (c *cloud) makeDevice(id string, mib int64) error {
	path := filepath.Join(c.dir, id)
	f, err := os.Create(path)
	if err == nil {
		err = errors.Join(f.Truncate(mib<<20), f.Close())
	}
	if err != nil {
		return err
	}
	out, err := exec.Command("losetup", "--find", "--show", path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("losetup: %w: %s", err, out)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.devices[id] = strings.TrimSpace(string(out))
	return nil
}

// created gives a volume that was created by a call its device; a GiB of the cloud is 8 MiB here.
func (c *cloud) created(v awsdouble.Volume) error { return c.makeDevice(v.ID, int64(v.SizeGiB)*8) }

func (c *cloud) detachAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, dev := range c.devices {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			c.t.Errorf("detach the loop device of %s: %v: %s", id, err, out)
		}
	}
}

// where is a path on a machine, and the device of a volume.
func (c *cloud) where(volume, instance string) (root, dev string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pids[instance] == 0 {
		return "", c.devices[volume]
	}
	return fmt.Sprintf("/proc/%d/root", c.pids[instance]), c.devices[volume]
}

func byIDName(volume string) string {
	return "nvme-Amazon_Elastic_Block_Store_" + strings.ReplaceAll(volume, "-", "")
}

// attached makes the device appear on the machine as udev does on Nitro: under a name of the kernel's, and a link that names the volume.
func (c *cloud) attached(v awsdouble.Volume, instance, _ string) error {
	root, dev := c.where(v.ID, instance)
	var st syscall.Stat_t
	if err := syscall.Stat(dev, &st); err != nil {
		return err
	}
	node := filepath.Join(root, "dev", "nvme-"+filepath.Base(dev))
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(st.Rdev)); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	links := filepath.Join(root, "dev/disk/by-id")
	if err := os.MkdirAll(links, 0o755); err != nil {
		return err
	}
	return os.Symlink("../../"+filepath.Base(node), filepath.Join(links, byIDName(v.ID)))
}

// detached takes the device away. A machine that still has it mounted doesn't let go, as a real one doesn't.
func (c *cloud) detached(v awsdouble.Volume, instance string) error {
	root, dev := c.where(v.ID, instance)
	if root == "" {
		return nil // the machine is gone
	}
	f, err := os.OpenFile(dev, os.O_RDONLY|syscall.O_EXCL, 0)
	if err != nil {
		return err
	}
	f.Close()
	return errors.Join(os.Remove(filepath.Join(root, "dev/disk/by-id", byIDName(v.ID))),
		os.Remove(filepath.Join(root, "dev", "nvme-"+filepath.Base(dev))))
}

// machine starts a machine and creates the manager's container on it. The manager isn't started yet.
func (c *cloud) machine(name, instance, zone string, command func(m *master) []string, env ...string) *master {
	c.t.Helper()
	var docker []string
	for _, e := range env {
		docker = append(docker, "-e", e)
	}
	return c.machineWith(name, instance, zone, command, docker...)
}

// machineWith is machine with further arguments of docker.
func (c *cloud) machineWith(name, instance, zone string, command func(m *master) []string, docker ...string) *master {
	c.t.Helper()
	return c.machineOf(name, instance, zone, masterOptions{docker: docker, command: command})
}

// machineOf is machineWith for any options of the master.
func (c *cloud) machineOf(name, instance, zone string, o masterOptions) *master {
	t := c.t
	t.Helper()
	host := c.w.name + "-machine-" + instance
	run := slices.Concat([]string{"run", "-d", "--name", host, "--network", "none"}, privileges(), c.w.labels(),
		[]string{must(t, machineImage)})
	mustDocker(t, run...)
	pid, err := strconv.Atoi(mustDocker(t, "inspect", "--format", "{{.State.Pid}}", host))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/dev", pid)); err != nil {
		t.Skipf("skipped: containers run where this test can't see their devices: %v", err)
	}
	c.mu.Lock()
	c.pids[instance] = pid
	c.mu.Unlock()
	address := c.w.address(byte(11 + c.w.given)) // the master's below
	c.AddInstance(awsdouble.Instance{ID: instance, Zone: zone, IPv4: address})
	imds := c.serve(c.Metadata(instance))
	args := []string{"--pid", "container:" + host, "--mount", "type=volume,dst=/var/log", "-e",
		"AWS_ENDPOINT_URL_EC2=" + c.url, "-e", "AWS_EC2_METADATA_SERVICE_ENDPOINT=" + imds}
	o.docker = slices.Concat(args, privileges(), o.docker)
	return c.w.addMaster(name, o)
}

// terminate ends a machine: what runs on it is killed, and its volumes are detached.
func (c *cloud) terminate(m *master, instance string) {
	c.t.Helper()
	m.kill()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, container := range []string{m.container, c.w.name + "-machine-" + instance} {
		if _, err := docker(ctx, "rm", "-f", container); err != nil {
			c.t.Fatal(err)
		}
	}
	c.mu.Lock()
	delete(c.pids, instance)
	c.mu.Unlock()
	c.w.masters = slices.DeleteFunc(c.w.masters, func(x *master) bool { return x == m })
	c.Terminate(instance)
}

// uuid is the file system's on a volume; it changes when it is formatted.
func (c *cloud) uuid(volume string) string {
	c.t.Helper()
	uuid := c.uuidOrNone(volume)
	if uuid == "" {
		c.t.Errorf("volume %s has no file system", volume)
	}
	return uuid
}

func (c *cloud) uuidOrNone(volume string) string {
	_, dev := c.where(volume, "")
	out, err := exec.Command("blkid", "--probe", "--match-tag", "UUID", "--output", "value", dev).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
