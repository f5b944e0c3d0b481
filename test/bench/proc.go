package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ticks is how many parts of a second the kernel counts CPU time in; it is the same on all architectures that Go knows.
const ticks = 100

// cpuOf is the CPU time, in user and kernel mode, of a process without its children; 0 if it is gone.
func cpuOf(pid int) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold spaces.
	_, rest, _ := strings.Cut(string(data), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * time.Second / ticks
}

// memoryOf reads a field like VmRSS or VmHWM, in MiB; 0 if the process is gone.
func memoryOf(pid int, field string) float64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			kib, _ := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB"))
			return float64(kib) / 1024
		}
	}
	return 0
}

// resetPeak makes VmHWM begin anew.
func resetPeak(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// childrenOf lists the direct children of a process.
func childrenOf(pid int) []int {
	var all []int
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, l := range lists {
		data, _ := os.ReadFile(l) // the thread may have ended
		for f := range strings.FieldsSeq(string(data)) {
			if child, err := strconv.Atoi(f); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}

// writableFiles lists the regular files that a process has open for writing.
func writableFiles(pid int) []string {
	var files []string
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	for _, fd := range fds {
		path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if err != nil || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "/dev/") {
			continue
		}
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd.Name()))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(info)) {
			value, ok := strings.CutPrefix(line, "flags:")
			if !ok {
				continue
			}
			flags, err := strconv.ParseInt(strings.TrimSpace(value), 8, 64)
			if err == nil && flags&3 != 0 { // O_WRONLY or O_RDWR
				files = append(files, path)
			}
		}
	}
	return files
}

// watcher looks at processes ten times a second.
type watcher struct {
	pids []int
	// ignore tells of a file that it doesn't count as temporary.
	ignore func(path string) bool
	// skipChild tells of a child that it isn't one of the work's.
	skipChild func(pid int) bool
	stop      chan struct{}
	done      chan struct{}

	mu       sync.Mutex
	at       []time.Time
	cpu      [][]time.Duration
	files    []string
	children childMemory
}

// childMemory is the largest a child was, in MiB: all that is resident, and what of it isn't pages of files.
type childMemory struct{ resident, anonymous float64 }

func watch(pids []int, ignore func(string) bool, skipChild func(int) bool) *watcher {
	w := &watcher{pids: pids, ignore: ignore, skipChild: skipChild, stop: make(chan struct{}), done: make(chan struct{})}
	w.look()
	go func() {
		defer close(w.done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-w.stop:
				return
			case <-tick.C:
				w.look()
			}
		}
	}()
	return w
}

func (w *watcher) end() {
	close(w.stop)
	<-w.done
}

func (w *watcher) look() {
	cpu := make([]time.Duration, len(w.pids))
	var files []string
	var children childMemory
	for i, pid := range w.pids {
		cpu[i] = cpuOf(pid)
		for _, f := range writableFiles(pid) {
			if !w.ignore(f) {
				files = append(files, f)
			}
		}
		for _, c := range childrenOf(pid) {
			if !w.skipChild(c) {
				children.resident = max(children.resident, memoryOf(c, "VmRSS"))
				children.anonymous = max(children.anonymous, memoryOf(c, "RssAnon"))
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at, w.cpu = append(w.at, time.Now()), append(w.cpu, cpu)
	w.children.resident = max(w.children.resident, children.resident)
	w.children.anonymous = max(w.children.anonymous, children.anonymous)
	for _, f := range files {
		if !slices.Contains(w.files, f) {
			w.files = append(w.files, f)
		}
	}
}

// between is the CPU time of all processes from one moment to another, as far as the samples reach.
func (w *watcher) between(from, to time.Time) (time.Duration, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	first, last := -1, -1
	for i, t := range w.at {
		if !t.After(from) {
			first = i
		}
		if last < 0 && !t.Before(to) {
			last = i
		}
	}
	if first < 0 || last < 0 {
		return 0, errors.New("the samples don't reach that far")
	}
	var sum time.Duration
	for i := range w.pids {
		sum += w.cpu[last][i] - w.cpu[first][i]
	}
	return sum, nil
}

// seen are the temporary files and the largest child since the last call.
func (w *watcher) seen() (files []string, children childMemory) {
	w.mu.Lock()
	defer w.mu.Unlock()
	files, children = w.files, w.children
	w.files, w.children = nil, childMemory{}
	return files, children
}
