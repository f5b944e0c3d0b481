package file

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// actAsMachine answers the questions on its standard input, or asks one where an empty one comes.
func actAsMachine(s *Store) error {
	in := json.NewDecoder(os.Stdin)
	for {
		var q blob.Question
		if err := in.Decode(&q); err != nil {
			return nil // the test is over
		}
		if q.Key == "" {
			if err := poseAndJudge(s, in); err != nil {
				return err
			}
			continue
		}
		if err := json.NewEncoder(os.Stdout).Encode(blob.Witness(context.Background(), s, q)); err != nil {
			return err
		}
	}
}

func poseAndJudge(s blob.Store, in *json.Decoder) error {
	p, err := blob.Pose(context.Background(), s, "a")
	if err != nil {
		return err
	}
	var t blob.Testimony
	if err := json.NewEncoder(os.Stdout).Encode(p.Question); err != nil {
		return err
	}
	if err := in.Decode(&t); err != nil {
		return err
	}
	f, err := p.Judge(context.Background(), t)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(f); err != nil {
		return err
	}
	return p.End(context.Background())
}

// machine is one such process.
type machine struct {
	in  *json.Encoder
	out *json.Decoder
}

// startMachine starts a process with mounts of its own, of which one is at the place that all call the store.
func startMachine(t *testing.T, at, mount string) machine {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", mount+` && exec "$0"`, os.Args[0])
	cmd.Env = append(os.Environ(), helperVar+"=machine "+at)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	return machine{json.NewEncoder(in), json.NewDecoder(bufio.NewReader(out))}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestMachines: two processes with mounts of their own have a store at the same path. What they
// find out is what is mounted there: one directory, two of them, or one file system whose locks
// each has for itself, as NFS has with nolock.
func TestMachines(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount")
	}
	base := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "none", base).CombinedOutput(); err != nil { // an overlay can't lie on another one
		t.Skipf("no file system can be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "--lazy", base).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	at := filepath.Join(base, "store")
	for _, dir := range []string{"store", "one", "other", "low", "work1", "work2"} {
		must(t, os.Mkdir(filepath.Join(base, dir), 0o700))
	}
	bind := func(dir string) string { return fmt.Sprintf("mount --bind %s/%s %s", base, dir, at) }
	// Two overlays of one directory show the same files, and each has inodes, and so locks, of its own.
	overlay := func(work string) string {
		return fmt.Sprintf("mount -t overlay overlay -o lowerdir=%s/low,upperdir=%s/one,workdir=%s/%s,index=off %s",
			base, base, base, work, at)
	}
	for name, c := range map[string]struct {
		a, b string
		want blob.Finding
	}{
		"one directory":   {bind("one"), bind("one"), blob.OneStore},
		"two directories": {bind("one"), bind("other"), blob.OtherStore},
		"local locks":     {overlay("work1"), overlay("work2"), blob.LocksApart},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := startMachine(t, at, c.a), startMachine(t, at, c.b)
			var q blob.Question
			var testimony blob.Testimony
			var got blob.Finding
			must(t, a.in.Encode(blob.Question{}))
			must(t, a.out.Decode(&q))
			must(t, b.in.Encode(q))
			must(t, b.out.Decode(&testimony))
			must(t, a.in.Encode(testimony))
			must(t, a.out.Decode(&got))
			if got != c.want {
				t.Errorf("the finding is %v by %+v, want %v", got, testimony, c.want)
			}
		})
	}
}
