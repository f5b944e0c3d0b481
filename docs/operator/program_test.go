package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// TestProgram builds and runs the program, which restores a cluster to a second ago with pkg/operator alone.
func TestProgram(t *testing.T) {
	testutil.Long(t)
	program := filepath.Join(t.TempDir(), "program")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	c := harness.Start(t, harness.Options{Nodes: 1, Args: []string{"--change-log-interval=500ms"}})
	c.Put("/kept", "yes")
	put := time.Now()
	c.WaitFor("the key to be older than the second that the program goes back", time.Minute, func() string {
		if age := time.Since(put); age < 2*time.Second {
			return fmt.Sprint("it is ", age)
		}
		return ""
	})
	last := ""
	c.WaitFor("the restore to a second ago is done", 3*time.Minute, func() string {
		c.Put("/another", fmt.Sprint(time.Now())) // where nothing is written, the changes of the last minute may not be known yet
		cmd := exec.CommandContext(t.Context(), program, c.StoreURL)
		cmd.Env = append(os.Environ(), "HOME="+c.Dir)
		out, err := cmd.CombinedOutput()
		last = string(out)
		switch {
		case err == nil:
			return ""
		case !strings.Contains(last, "can't be reached"): // what was written a second ago may still be on its way into the store
			t.Fatalf("%v\n%s", err, out)
		}
		return last
	})
	// Between two looks at the store a restore may begin and end, so that no state is seen.
	for _, want := range []string{"backup 20", "plan: revision", "ended done <nil>"} {
		if !strings.Contains(last, want) {
			t.Errorf("it doesn't say %q:\n%s", want, last)
		}
	}
	r, err := c.Client().Get(t.Context(), "/kept")
	if err != nil || len(r.Kvs) != 1 {
		t.Errorf("the key is gone: %v, %v", r, err)
	}
}
