package e2e

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/awsdouble"
)

const (
	firstKey  = "arn:aws:kms:us-east-1:111122223333:key/first"
	secondKey = "arn:aws:kms:us-east-1:111122223333:key/second"
	thirdKey  = "arn:aws:kms:us-east-1:111122223333:key/third"
)

// ctlVolumes is a command of the tool on the volumes, on this machine, outside of all containers.
func (c *cloud) ctlVolumes(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, ctlBinary(c.t), slices.Concat([]string{"--backup-store=" + c.w.store.url, "volumes"}, args, []string{
		"--cluster-name=etcd-events", "--volume-name-tag=k8s.io/etcd/events", "--volume-tag=k8s.io/etcd/events",
		"--volume-tag=kubernetes.io/cluster/example.com=owned"})...)
	cmd.Env = slices.Concat(os.Environ(), c.w.store.env,
		[]string{"AWS_ENDPOINT_URL_EC2=" + c.url, "AWS_REGION=us-east-1", "AWS_ACCESS_KEY_ID=operator", "AWS_SECRET_ACCESS_KEY=operator"})
	return cmd
}

// writers write all the time through clients that know all members, as API servers do, and remember what was acknowledged.
type writers struct {
	mu     sync.Mutex
	acked  []string
	failed []string
	// again counts writes that etcd refused, and hadn't made, because its leadership was being moved. They were repeated at once.
	again int
	stop  context.CancelFunc
	wg    sync.WaitGroup
}

func (w *world) write(prefix string, clients int) *writers {
	ctx, cancel := context.WithCancel(w.t.Context())
	wr := &writers{stop: cancel}
	w.t.Cleanup(cancel)
	for i := range clients {
		client := w.client(w.t, w.masters...)
		wr.wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				key := fmt.Sprintf("%s/%d/%06d", prefix, i, n)
				call, done := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
				_, err := client.Put(call, key, "x")
				dropped := 0
				for ; err != nil && strings.Contains(err.Error(), "raft proposal dropped") && dropped < 10; dropped++ {
					_, err = client.Put(call, key, "x")
				}
				done()
				wr.mu.Lock()
				wr.again += dropped
				if err != nil {
					wr.failed = append(wr.failed, fmt.Sprintf("%s %s: %v", time.Now().Format("15:04:05.000"), key, err))
				} else {
					wr.acked = append(wr.acked, key)
				}
				wr.mu.Unlock()
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	return wr
}

// end stops them and makes sure that every acknowledged write is there.
func (wr *writers) end(w *world, prefix string) {
	t := w.t
	t.Helper()
	wr.stop()
	wr.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	have := map[string]bool{}
	r, err := w.client(t, w.masters...).Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range r.Kvs {
		have[string(kv.Key)] = true
	}
	lost := slices.DeleteFunc(slices.Clone(wr.acked), func(k string) bool { return have[k] })
	t.Logf("%d writes acknowledged, %d refused and repeated while the leadership moved, %d failed, %d lost",
		len(wr.acked), wr.again, len(wr.failed), len(lost))
	if len(lost) > 0 || len(wr.acked) < 100 {
		t.Errorf("acknowledged writes that are gone: %v", lost)
	}
}

// judge fails the test for writes that failed. That etcd was too slow says nothing of what is
// tested while other tests take the machine; on a machine of its own (-strict) it counts too.
func (wr *writers) judge(t *testing.T) {
	t.Helper()
	for _, f := range wr.failed {
		if strings.Contains(f, "timed out") && !*strict {
			t.Logf("etcd was too slow for a write: %s", f)
			continue
		}
		t.Errorf("a write failed: %s", f)
	}
}

// TestEncryptVolumes: from plain to encrypted under load without a failed write, the tool killed
// after each line that it says; then to another key, each node killed at another step of its way;
// then all told to at once, which they do one after the other. At the end every volume is
// encrypted, and the old ones are kept until confirmed.
func TestEncryptVolumes(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := newCloud(t, kopsPorts())
	w := c.w
	w.startS3("example.com/backups/etcd/events")
	w.configure("")
	for _, zone := range []string{"a", "b", "c"} {
		c.addVolume(awsdouble.Volume{ID: "vol-0" + zone, Zone: "us-east-1" + zone, Type: "gp3", SizeGiB: 20, Tags: kopsTags(zone)}, 160)
		c.machine("etcd-events-"+zone, "i-"+zone, "us-east-1"+zone, kopsCommand("--discovery-poll-interval=2s"))
	}
	each(w.masters, (*master).start)
	w.waitServing(3 * time.Minute)
	if out, err := c.ctlVolumes(t.Context(), "check", "--require-encrypted-volume").CombinedOutput(); err == nil ||
		strings.Count(string(out), "not encrypted as required") != 4 {
		t.Errorf("volumes check of plain volumes: %v\n%s", err, out)
	}

	wr := w.write("one", 3)
	c.encrypt(firstKey, true)
	w.waitServing(time.Minute)
	wr.end(w, "one/")
	wr.judge(t)
	c.allEncrypted(firstKey, 3)

	t.Log("to another key; each node is killed at another step")
	wr = w.write("two", 1)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i, line := range []string{"this node releases it", "is released; it is kept", "gets an ext4 file system"} {
		wg.Go(func() { w.masters[i].killAt(line, stop) })
	}
	c.encrypt(secondKey, false)
	close(stop)
	wg.Wait()
	w.waitServing(2 * time.Minute)
	wr.end(w, "two/")
	c.allEncrypted(secondKey, 6)
	w.oneMemberList()

	t.Log("all three are tagged to be replaced at once, as the tool never does: still one after the other gives its volume up")
	wr = w.write("three", 3)
	for _, v := range c.Volumes() {
		if name := v.Tags["k8s.io/etcd/events"]; name != "" {
			next := awsdouble.Volume{ID: v.ID + "0", Zone: v.Zone, Type: v.Type, SizeGiB: v.SizeGiB, Encrypted: true,
				Key: thirdKey, Tags: maps.Clone(v.Tags)}
			next.Tags["etcd-manager.io/replaces"] = v.ID
			c.addVolume(next, 160)
			v.Tags["etcd-manager.io/replaced-by"] = next.ID
			c.AddVolume(v)
		}
	}
	c.encrypt(thirdKey, false)
	w.waitServing(time.Minute)
	wr.end(w, "three/")
	wr.judge(t)
	c.allEncrypted(thirdKey, 9)

	if out, err := c.ctlVolumes(t.Context(), "confirm", "--yes").CombinedOutput(); err != nil {
		t.Errorf("volumes confirm: %v\n%s", err, out)
	}
	c.allEncrypted(thirdKey, 0)
}

// killAt kills the master when its log says something that it hadn't said before, and starts it again.
func (m *master) killAt(line string, stop <-chan struct{}) {
	before := strings.Count(m.log(), line)
	for {
		select {
		case <-stop:
			m.w.t.Errorf("%s never said %q", m.name, line)
			return
		case <-time.After(30 * time.Millisecond):
		}
		if strings.Count(m.log(), line) > before {
			m.kill()
			m.w.t.Logf("killed %s, which said %q", m.name, line)
			m.start()
			return
		}
	}
}

// encrypt runs the command to its end; with killing, it is killed after each line that it hasn't said before.
func (c *cloud) encrypt(key string, killing bool) {
	t := c.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	seen := map[string]bool{}
	for runs := 1; ; runs++ {
		cmd := c.ctlVolumes(ctx, "encrypt", "--yes", "--require-encrypted-volume="+key)
		errOut, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		killed, last := false, ""
		for s := bufio.NewScanner(errOut); s.Scan(); {
			last = s.Text()
			what := last[strings.Index(last, "Z ")+1:]
			if killing && !killed && !seen[what] && strings.Contains(last, "Z ") {
				seen[what], killed = true, true
				t.Logf("killing it after: %s", last)
				_ = cmd.Process.Kill()
			} else if !killed {
				t.Logf("volumes encrypt: %s", last)
			}
		}
		err = cmd.Wait()
		if err == nil {
			t.Logf("done in run %d", runs)
			return
		}
		if !killed {
			t.Fatalf("volumes encrypt: %v: %s", err, last)
		}
	}
}

// allEncrypted checks what the cloud has, and that the tool says the same.
func (c *cloud) allEncrypted(key string, kept int) {
	t := c.t
	t.Helper()
	members, old := 0, 0
	for _, v := range c.Volumes() {
		if _, member := v.Tags["k8s.io/etcd/events"]; member {
			members++
			if !v.Encrypted || v.Key != key || v.Attachment == nil || v.Attachment.State != "attached" ||
				v.SizeGiB != 20 || v.Tags["etcd-manager.io/replaces"] != "" {
				t.Errorf("a member's volume is %+v", v)
			}
		} else {
			old++
			if v.Attachment != nil || v.Tags["etcd-manager.io/kept"] == "" {
				t.Errorf("an old volume is %+v", v)
			}
		}
	}
	if members != 3 || old != kept {
		t.Errorf("%d volumes of members, %d old ones; want 3 and %d", members, old, kept)
	}
	out, err := c.ctlVolumes(t.Context(), "check", "--require-encrypted-volume="+key).CombinedOutput()
	if err != nil || strings.Count(string(out), key) < 3 || strings.Count(string(out), "kept, replaced by") != kept {
		t.Errorf("volumes check: %v\n%s", err, out)
	}
	t.Logf("volumes check:\n%s", out)
}
