// Command bench measures speed and size and prints a table: what etcd-manager needs, beside what etcd started by hand
// with a static configuration, or etcd's own tools, need for the same in the same run on the same machine.
//
// The two take turns (ours, by hand, ours, by hand), and medians are compared, so that a machine
// which is busy, or slow, is so for both. The figures mean little while anything else runs on the
// machine. "make bench" runs all of it; -h lists how to run parts.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// settings are the flags.
type settings struct {
	rows, stores        string
	size                float64
	quick, slow         int
	idle, settle, busy  time.Duration
	backupMiB           int
	restoreMiB          string
	out, dir            string
	parallelByHand      bool
	keepLogs, breakdown bool
}

// part is a group of rows that share a setup.
type part struct {
	name string
	run  func(*bench, *settings, *report)
}

func parts() []part {
	return []part{
		{"start", benchStart}, {"failover", benchFailover}, {"idle", benchIdle},
		{"changes", benchChanges}, {"backup", benchBackup}, {"restore", benchRestore}, {"retention", benchRetention},
		{"retention-archive", benchArchive},
	}
}

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	var s settings
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&s.rows, "rows", strings.Join(names, ","), "what to measure")
	f.StringVar(&s.stores, "stores", "file,s3", "stores for the backup rows")
	f.Float64Var(&s.size, "size", 1, "factor for the sizes of databases, for trying; limits of time and memory are judged all the same")
	f.IntVar(&s.quick, "n", 5, "runs of what is quick")
	f.IntVar(&s.slow, "slow-n", 3, "runs of what is slow (backup, restore)")
	f.DurationVar(&s.settle, "settle", 100*time.Second,
		"how long a cluster is left alone before idleness is measured; its first backup is proven in the first minute")
	f.DurationVar(&s.idle, "idle", 2*time.Minute, "how long idleness is measured")
	f.DurationVar(&s.busy, "busy", 20*time.Second, "how long clients write as fast as they can")
	f.IntVar(&s.backupMiB, "backup-mib", 650, "database of the backup rows")
	f.StringVar(&s.restoreMiB, "restore-mib", "100,1024", "databases of the restore rows")
	f.StringVar(&s.out, "out", "", "file that the table is written to as well")
	f.StringVar(&s.dir, "dir", "", "where data go; default the directory for temporary files")
	f.BoolVar(&s.parallelByHand, "parallel-by-hand", false, "run the three etcdutl of the reference at the same time")
	f.BoolVar(&s.keepLogs, "keep-logs", false, "print the end of the managers' logs after each part")
	f.BoolVar(&s.breakdown, "steps", true, "print how long each step of a restore took")
	if err := f.Parse(args); err != nil {
		return 2
	}
	return measure(&s, names)
}

func measure(s *settings, names []string) int {
	base, err := os.MkdirTemp(s.dir, "etcd-manager-bench-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(base)
	// Whatever is built or written on the way goes there, and so goes away.
	if err := os.Setenv("TMPDIR", base); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, want := range strings.Split(s.rows, ",") {
		if !slices.Contains(names, want) {
			fmt.Fprintf(os.Stderr, "there is no part %q; there are %s\n", want, strings.Join(names, ", "))
			return 2
		}
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	r := &report{live: os.Stderr}
	failed := false
	for _, p := range parts() {
		if !slices.Contains(strings.Split(s.rows, ","), p.name) {
			continue
		}
		b := newBench(p.name, filepath.Join(base, p.name))
		fmt.Fprintf(os.Stderr, "== %s\n", p.name)
		if !b.run(stop, func() { p.run(b, s, r) }) {
			failed = true
			if b.stopped {
				break
			}
		}
	}
	text := r.markdown(machine(s))
	fmt.Println(text)
	if s.out != "" {
		if err := os.WriteFile(s.out, []byte(text+"\n"), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			failed = true
		}
	}
	if failed {
		return 1
	}
	return 0
}

// machine describes where and how it was measured.
func machine(s *settings) string {
	mem := "?"
	if f, err := os.Open("/proc/meminfo"); err == nil {
		defer f.Close()
		var kib int
		if _, err := fmt.Fscanf(f, "MemTotal: %d kB", &kib); err == nil {
			mem = fmt.Sprintf("%.0f GiB", float64(kib)/(1<<20))
		}
	}
	text := fmt.Sprintf("Measured on %s with %d cores and %s of memory, %s, by `make bench`. Medians of %d runs (of %d for backups and restores), in turns with the reference; in brackets the lowest and the highest.",
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), mem, runtime.Version(), s.quick, s.slow)
	if s.size != 1 {
		text += fmt.Sprintf(" Sizes of databases were multiplied by %g: these figures are for trying only.", s.size)
	}
	return text
}

// logTo prints what is going on.
func logTo(w io.Writer, format string, a ...any) {
	fmt.Fprintf(w, time.Now().Format("15:04:05 ")+format+"\n", a...)
}
