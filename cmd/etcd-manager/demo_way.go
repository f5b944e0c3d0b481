package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// demoSpace is what the demo needs on its disk: three databases, their write-ahead logs (64 MiB each, and the next one) and backups.
	demoSpace = 512 << 20
	// demoStep is between the ports of two demos, demoRanges how many are tried.
	demoStep, demoRanges = 100, 20
)

// clearWay looks for everything that would be in the demo's way, before anything is started. What it returns gives the directory free.
func (d *demo) clearWay() (release func(), err error) {
	if d.dir, err = filepath.Abs(d.dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, fmt.Errorf("the directory can't be made: %w; choose another one with --dir", err)
	}
	lock, err := d.lock()
	if err != nil {
		return nil, err
	}
	if err := d.space(); err != nil {
		lock.Close()
		return nil, err
	}
	if err := d.choosePorts(); err != nil {
		lock.Close()
		return nil, err
	}
	return func() { lock.Close() }, nil
}

// lock keeps two demos from using one directory.
func (d *demo) lock() (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(d.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid, _ := os.ReadFile(lock.Name())
		lock.Close()
		return nil, fmt.Errorf("a demo runs already with the data in %s (process %s): a second one would disturb its cluster. "+
			"Start this one beside it with another directory, for example --dir=%s-2, or stop the first one: kill %s",
			d.dir, strings.TrimSpace(string(pid)), filepath.Base(d.dir), strings.TrimSpace(string(pid)))
	}
	err = lock.Truncate(0)
	if err == nil {
		_, err = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		lock.Close()
		if errors.Is(err, syscall.ENOSPC) {
			return nil, fmt.Errorf("the disk of %s is full; free %d MiB, or choose a directory on another disk with --dir", d.dir, demoSpace>>20)
		}
		return nil, err
	}
	return lock, nil
}

func (d *demo) space() error {
	var s unix.Statfs_t
	if err := unix.Statfs(d.dir, &s); err != nil {
		return fmt.Errorf("the free space of %s isn't known: %w", d.dir, err)
	}
	if free := int64(s.Bavail) * int64(s.Bsize); free < demoSpace { //nolint:unconvert // the types differ between systems
		return fmt.Errorf("only %d MiB are free at %s, and the demo needs %d; free some, or choose a directory on another disk with --dir",
			free>>20, d.dir, demoSpace>>20)
	}
	return nil
}

// choosePorts takes the ports of an earlier demo with these data, or those of --port, or else the first that are free.
func (d *demo) choosePorts() error {
	file := filepath.Join(d.dir, "port")
	why := "choose others with --port"
	if text, err := os.ReadFile(file); err == nil {
		before, err := strconv.Atoi(strings.TrimSpace(string(text)))
		switch {
		case err != nil:
			return fmt.Errorf("%s has no port in it; remove the directory %s", file, d.dir)
		case d.ownPort && before != d.port:
			return fmt.Errorf("the data in %s are of a demo with --port=%d; use this port, or another directory with --dir", d.dir, before)
		}
		d.port, d.ownPort = before, true
		why = "stop that process, or use another directory with --dir: the members of the demo in this one are known by these ports"
	}
	if _, err := os.Stat(filepath.Join(d.data(&demoNode{name: "a"}), "myid")); err == nil {
		d.ownPort = true // there is a cluster, and its members are known by their ports
	}
	first := d.port
	for i := range demoRanges {
		d.port = first + i*demoStep
		taken := d.takenPort()
		if taken == 0 {
			if i > 0 {
				fmt.Fprintf(d.out, "port %d and those behind it are taken, so this demo uses %d to %d\n", first, d.port, d.port+24)
			}
			return os.WriteFile(file, []byte(strconv.Itoa(d.port)+"\n"), 0o600)
		}
		if d.ownPort {
			return fmt.Errorf("port %d on 127.0.0.1 is taken by another process, and the demo needs %d to %d; %s", taken, d.port, d.port+24, why)
		}
	}
	return fmt.Errorf("no free ports were found from %d to %d; choose others with --port", first, d.port+24)
}

// takenPort returns one of the demo's ports on which somebody listens, or 0.
func (d *demo) takenPort() int {
	for node := range 3 {
		for i := range 5 {
			port := d.port + 10*node + i
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
			if err != nil {
				return port
			}
			_ = l.Close()
		}
	}
	return 0
}
