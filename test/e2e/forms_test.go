package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/awsdouble"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// form is a command with which kOps has started this container.
type form struct {
	// kops are the versions that write it.
	kops string
	// etcd is kOps' name of the etcd cluster.
	etcd string
	// program is the manager behind /bin/sh; empty means /go-runner.
	program string
	// flags are added to those that every version writes, quoted as it writes them.
	flags []string
	// metal is the deployment without a cloud.
	metal bool
	// shared has all members under one name in the client URLs, which leads every machine to itself.
	shared bool
	// image is the manager's, if it isn't the usual one; version is the etcd that is asked for, runs the one that has to run in its place.
	image         func() (string, error)
	version, runs string
}

const (
	oldProgram = "/etcd-manager"
	newProgram = "/ko-app/etcd-manager"
)

// forms is every form from kOps 1.26 on.
func forms() map[string]form {
	return map[string]form{
		"sh-to-1.32": {kops: "1.26 to 1.32", etcd: "main", program: oldProgram, flags: []string{"--backup-interval=1h0m0s",
			"--discovery-poll-interval=1m0s"}},
		"sh-from-1.33": {kops: "1.33 to 1.35.1", etcd: "events", program: newProgram,
			flags: []string{"--listen-metrics-urls=http://127.0.0.1:8089"}},
		"go-runner":       {kops: "from 1.35.2", etcd: "main"},
		"leases":          {kops: "from 1.34", etcd: "leases"},
		"cilium":          {kops: "1.26 to 1.32", etcd: "cilium", program: oldProgram},
		"metal-sh":        {kops: "1.31 to 1.35.1", etcd: "main", program: newProgram, metal: true},
		"metal-go-runner": {kops: "from 1.35.2", etcd: "main", metal: true},
		"shared-name":     {kops: "from 1.35.2", etcd: "cilium", shared: true},
		"aliases":         {kops: "from 1.35.2", etcd: "main", image: aliasImage, version: "3.5.9", runs: etcd35},
	}
}

// formPorts are those that kOps gives to an etcd cluster.
func formPorts(etcd string) ports {
	return map[string]ports{"main": {4001, 2380, 3996, 3994, 8081}, "events": {4002, 2381, 3997, 3995, 8081}, "cilium": {4003, 2382,
		3991, 3992, 8081},
		"leases": {4004, 2383, 4006, 4005, 8081}}[etcd]
}

// sharedName is the one under which API servers find etcd, whatever member that is.
func sharedName(name string) string { return "api.internal." + name }

// aliasImage has one etcd under the names of older patches, as kOps mounts it.
var aliasImage = sync.OnceValues(func() (string, error) {
	base, err := managerImage()
	if err != nil {
		return "", err
	}
	binary, err := servers.Build("etcd-3.5")
	if err != nil {
		return "", err
	}
	text := "FROM " + base + "\n"
	for _, version := range []string{"3.5.3", "3.5.9", "3.5.17"} {
		text += "COPY etcd /opt/etcd-v" + version + "/etcd\n"
	}
	return derived("aliases", text, map[string]string{"etcd": binary})
})

func (f form) clusterName() string {
	if f.etcd == "main" {
		return "etcd"
	}
	return "etcd-" + f.etcd
}

// tags are those that kOps gives a volume of a Kubernetes cluster of this name.
func (f form) tags(name string) map[string]string {
	return map[string]string{
		"KubernetesCluster": name, "kubernetes.io/cluster/" + name: "owned", "Name": "a.etcd-" + f.etcd + "." + name,
		"k8s.io/etcd/" + f.etcd: "a/a", "k8s.io/role/control-plane": "1", "k8s.io/role/master": "1",
	}
}

// args are the manager's flags as kOps joins them, in its order: by name.
func (f form) args(name, store string) []string {
	p := formPorts(f.etcd)
	client := "__name__"
	if f.shared {
		client = sharedName(name)
	}
	args := []string{
		"--backup-store=" + store, fmt.Sprintf("--client-urls=https://%s:%d", client, p.client), "--cluster-name=" + f.clusterName(),
		"--containerized=true",
		"--dns-suffix=.internal." + name, fmt.Sprintf("--grpc-port=%d", p.grpc), fmt.Sprintf("--peer-urls=https://__name__:%d", p.peer),
		fmt.Sprintf("--quarantine-client-urls=https://__name__:%d", p.quarantine), "--v=6",
	}
	node := name + "--" + f.etcd + "--"
	if f.metal {
		static := fmt.Sprintf(`{"etcdVersion":"%s","nodes":[{"id":"%s0","ip":["node0.%s.%s"]}]}`, f.version, node, f.etcd, name)
		if f.program != "" {
			static = "'" + static + "'" // or a shell would take the quotes away
		}
		args = append(args, "--static-config="+static, "--volume-provider=external", "--volume-tag="+node)
	} else {
		args = append(args, "--volume-name-tag=k8s.io/etcd/"+f.etcd, "--volume-provider=aws", "--volume-tag=k8s.io/etcd/"+f.etcd,
			"--volume-tag=k8s.io/role/control-plane=1", "--volume-tag=kubernetes.io/cluster/"+name+"=owned")
	}
	// What lets a test look at the manager, and wait less for it.
	args = append(args, fmt.Sprintf("--etcd-manager-metrics-port=%d", p.status), "--queue-poll-interval=2s")
	return append(args, f.flags...)
}

// command is the container's, to the letter.
func (f form) command(name, store string) []string {
	if f.program == "" {
		return slices.Concat([]string{"/go-runner", "--log-file=/var/log/etcd.log", "--also-stdout", newProgram}, f.args(name, store))
	}
	return []string{"/bin/sh", "-c", "mkfifo /tmp/pipe; (tee -a /var/log/etcd.log < /tmp/pipe & ) ; exec " + f.program + " " +
		strings.Join(f.args(name, store), " ") + " > /tmp/pipe 2>&1"}
}

// formRun is a form that runs as a cluster of one.
type formRun struct {
	form
	*master
	name string
	// log is the log file on the machine, mounted into the container as kOps does it.
	log string
}

// TestEveryFormOfKOps: with every command that kOps has given to this container it starts, keeps a log that
// is complete where it is and rotated, ends in
// order, and restores a backup.
func TestEveryFormOfKOps(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := newCloud(t, ports{})
	c.w.startS3("forms")
	runs := map[string]*formRun{}
	for key, f := range forms() {
		runs[key] = c.startForm(key, f)
	}
	t.Run("forms", func(t *testing.T) {
		for key, r := range runs {
			t.Run(key, func(t *testing.T) {
				t.Parallel()
				r.w.t = t
				r.check()
			})
		}
	})
}

// startForm creates the container of a form, with a store of its own below the one of all, and starts it.
func (c *cloud) startForm(key string, f form) *formRun {
	t := c.t
	t.Helper()
	r := &formRun{form: f, name: key + ".example.com", log: filepath.Join(c.dir, key+".log")}
	if err := os.WriteFile(r.log, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	w := *c.w
	store := *c.w.store
	store.url += "/" + key
	w.store, w.ports, w.masters = &store, formPorts(f.etcd), nil
	store.ctl = func(_ *world, args ...string) (string, error) {
		return runTool(ctlBinary(t), store.env, append([]string{"--backup-store=" + store.url}, args...)...)
	}
	command := func(*master) []string { return f.command(r.name, store.url) }
	mounts := []string{"-v", r.log + ":/var/log/etcd.log"}
	if f.shared {
		mounts = append(mounts, "--add-host", sharedName(r.name)+":127.0.0.1")
	}
	o := masterOptions{command: command, docker: mounts}
	if f.image != nil {
		o.image = must(t, f.image)
	}
	if f.metal {
		data := fmt.Sprintf("/rootfs/mnt/disks/%s--%s--0/mnt", r.name, f.etcd)
		o.docker = append(o.docker, "--mount", "type=volume,dst="+data)
		r.master = c.w.addMaster(key, o)
		putFile(t, r.container, data, "please-create-new-cluster", nil)
	} else {
		configure := []string{"configure-cluster", "--member-count=1"}
		if f.version != "" {
			configure = append(configure, "--etcd-version="+f.version)
		}
		w.ctl(configure...)
		zone := "us-east-1" + string(rune('a'+c.w.given)) // a volume is looked for in its zone
		c.addVolume(awsdouble.Volume{ID: "vol-0" + key, Zone: zone, Type: "gp3", SizeGiB: 20, Tags: f.tags(r.name)}, 1024)
		r.master = c.machineOf(key, "i-"+key, zone, o)
	}
	mine := *r.master
	mine.w = &w
	w.masters, r.master = []*master{&mine}, &mine
	r.start()
	return r
}

// serves waits until etcd serves.
func (r *formRun) serves() {
	r.w.t.Helper()
	waitFor(r.w.t, "etcd serves", 2*time.Minute, func() string {
		v, err := r.status()
		switch {
		case err != nil:
			return err.Error()
		case !v.Etcd.Healthy || v.Etcd.Quarantined:
			return v.Doing + " " + v.Etcd.Error
		}
		return ""
	})
}

// logHas waits until the text stands in a file of the machine.
func (r *formRun) logHas(path, text string) {
	r.w.t.Helper()
	waitFor(r.w.t, fmt.Sprintf("%s has %q", filepath.Base(path), text), time.Minute, func() string {
		data, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(data, []byte(text)) {
			return fmt.Sprintf("%d bytes, %v", len(data), err)
		}
		return ""
	})
}

func (r *formRun) read(path string) string {
	r.w.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		r.w.t.Fatal(err)
	}
	return string(data)
}

// copyAndTruncate rotates the log as logrotate's copytruncate does. Nothing is written meanwhile, so that
// nothing can be lost between the two.
func (r *formRun) copyAndTruncate() string {
	r.w.t.Helper()
	mustDocker(r.w.t, "pause", r.container)
	defer mustDocker(r.w.t, "unpause", r.container)
	text := r.read(r.log)
	if err := os.Truncate(r.log, 0); err != nil {
		r.w.t.Fatal(err)
	}
	return text
}

// renameAndCreate rotates it as logrotate's create does.
func (r *formRun) renameAndCreate() (renamed string) {
	r.w.t.Helper()
	renamed = r.log + ".1"
	if err := os.Rename(r.log, renamed); err != nil {
		r.w.t.Fatal(err)
	}
	if err := os.WriteFile(r.log, nil, 0o644); err != nil {
		r.w.t.Fatal(err)
	}
	return renamed
}

func (r *formRun) check() {
	t := r.w.t
	r.serves()
	client := r.w.client(t, r.master)
	put(t, client, "kept", "of the backup")
	r.logHas(r.log, "cluster "+r.clusterName())
	r.runsWhatItSays()
	first := r.copyAndTruncate()
	backup := ""
	if !r.metal { // a fixed list of members has no commands
		r.w.ctl("create-backup", "--wait")
		backup = r.w.backupAfter(time.Time{}) // the newest one
		put(t, client, "kept", "after it")
		r.w.ctl("restore-backup", backup)
	}
	renamed := r.renameAndCreate()
	r.stop()
	second := r.read(renamed)
	if got, want := first+second, r.master.log(); got != want {
		t.Errorf("the log files have %d bytes, standard output has %d; the first difference is at byte %d", len(got), len(want),
			firstDifference(got, want))
	}
	for _, text := range []string{first, second} {
		if text == "" || text[0] == 0 || !strings.HasSuffix(text, "\n") {
			t.Errorf("a log file of %d bytes has a hole or no end", len(text))
		}
	}
	if !strings.Contains(second, "etcd-manager ends gracefully") {
		t.Error("the log doesn't say that the manager ended in order")
	}
	r.start()
	r.serves()
	if r.metal {
		r.logHas(r.log, "cluster "+r.clusterName())
		r.has("of the backup")
		return
	}
	waitFor(t, "the data of the backup are there", 2*time.Minute, func() string {
		for _, c := range r.w.commands() {
			if c.Backup == backup && c.State == "failed" {
				t.Fatalf("the restore has failed: %+v", c)
			}
		}
		resp, err := get(t, r.w.client(t, r.master), "kept")
		if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != "of the backup" {
			return fmt.Sprintf("%v, %v", resp, err)
		}
		return ""
	})
	r.serves()
	r.logHas(r.log, backup)
	r.stop()
}

// runsWhatItSays checks that where another etcd stands in for the version that was asked for, it is that one, and the status says so.
func (r *formRun) runsWhatItSays() {
	r.w.t.Helper()
	if r.runs == "" {
		return
	}
	want := fmt.Sprintf("etcd %s is asked for and %s runs in its place", r.version, r.runs)
	waitFor(r.w.t, want, time.Minute, func() string {
		v, err := r.status()
		switch {
		case err != nil:
			return err.Error()
		case v.Etcd.Version != r.runs:
			return "etcd says that it is " + v.Etcd.Version
		case !strings.Contains(v.Doing, want):
			return v.Doing
		}
		return ""
	})
}

// has checks what the key of the test has.
func (r *formRun) has(want string) {
	r.w.t.Helper()
	resp, err := get(r.w.t, r.w.client(r.w.t, r.master), "kept")
	if err != nil || len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != want {
		r.w.t.Errorf("the key is %v, %v; want %q", resp, err, want)
	}
}

func firstDifference(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// TestNoShell: whoever wants a shell of the image is told that it has none.
func TestNoShell(t *testing.T) {
	needDocker(t)
	t.Parallel()
	name := image(t)
	for _, args := range [][]string{nil, {"-c", "ls"}, {"-c",
		"mkfifo /tmp/pipe; (tee -a /x < /tmp/pipe & ) ; exec /bin/ls > /tmp/pipe 2>&1"}} {
		ctx, cancel := contextOf(t)
		out, err := dockerBoth(ctx, slices.Concat([]string{"run", "--rm", "--network", "none", "--label", label(), "--entrypoint",
			"/bin/sh", name}, args)...)
		cancel()
		if err == nil || !strings.Contains(out, "This image has no shell") {
			t.Errorf("sh %q: %v\n%s", args, err, out)
		}
	}
}
