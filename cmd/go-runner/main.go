// Command go-runner runs a command and keeps its output in a log file: the entry point of the container image.
//
//	/go-runner --log-file=/var/log/etcd.log --also-stdout /ko-app/etcd-manager --backup-store=...
//
// It forwards signals, exits with the command's exit code (128 plus the number of the signal that killed
// it), and as process 1 of a container reaps every orphan. A log file that is rotated, by renaming or by
// truncating, is followed; --log-file-max-size bounds one that nobody rotates; a disk that is full costs log
// lines but never the command.
//
// Under the name sh it obeys the one command line of a shell with which kOps up to 1.35.1 starts the image, and refuses every other:
//
//	/bin/sh -c "mkfifo /tmp/pipe; (tee -a /var/log/etcd.log < /tmp/pipe & ) ; exec /etcd-manager ... > /tmp/pipe 2>&1"
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"
)

// Exit codes of go-runner itself, as shells use them.
const (
	exitUsage      = 2
	exitNoLog      = 1
	exitCannotRun  = 126
	exitNotFound   = 127
	exitBySignal   = 128
	drainAfterExit = 500 * time.Millisecond
)

type options struct {
	logFile string
	// logMost bounds the log file, in MiB; 0 means no bound.
	logMost int
	// logMayFail has the command run though the log file can't be opened, as tee does; it is tried again.
	logMayFail     bool
	alsoStdout     bool
	redirectStderr bool
	command        []string
}

func main() {
	opts, err := optionsOf(os.Args, os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(exitUsage)
	}
	code, err := run(opts)
	if err != nil {
		fmt.Fprintf(os.Stderr, "go-runner: %v\n", err)
	}
	os.Exit(code)
}

// optionsOf reads the command line under the name that the program was started with.
func optionsOf(argv []string, out io.Writer) (options, error) {
	if len(argv) == 0 || !isShell(argv[0]) {
		return parse(argv[min(1, len(argv)):], out)
	}
	o, err := parseShell(argv[1:])
	if err != nil {
		fmt.Fprintf(out, "sh: %v.\nThis image has no shell. Under the name sh, go-runner obeys only: %s\n"+
			"To look at a cluster use /etcd-manager-ctl; for a shell on the machine use a debugging container.\n", err, shellForm)
	}
	return o, err
}

// parse reads the flags up to the first argument that is none; from there on everything is the command's.
func parse(args []string, out io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("go-runner", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&o.logFile, "log-file", "", "append the command's output to this `file`; empty means standard output only")
	f.IntVar(&o.logMost, "log-file-max-size", 0,
		"rename the log file to FILE.1 before it has more than this many `MiB`, whoever else rotates it; 0 means never")
	f.BoolVar(&o.alsoStdout, "also-stdout", false, "write the output to standard output too")
	f.BoolVar(&o.redirectStderr, "redirect-stderr", true, "treat the command's standard error like its standard output")
	f.Usage = func() {
		fmt.Fprintf(out, "Usage: go-runner [flags] COMMAND [arguments]\n\nRuns a command and keeps its output in a log file.\n\n")
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.logMost < 0 || o.logMost > 1<<20 {
		fmt.Fprintf(out, "go-runner: --log-file-max-size=%d must be a number of MiB, or 0 for no bound\n", o.logMost)
		return o, errors.New("wrong size")
	}
	o.command = f.Args()
	if len(o.command) == 0 {
		fmt.Fprintln(out, "go-runner: no command given; see go-runner --help")
		return o, errors.New("no command")
	}
	return o, nil
}

// run returns the exit code, and an error if it is not the command's own.
func run(o options) (int, error) {
	path, err := exec.LookPath(o.command[0])
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			return exitCannotRun, fmt.Errorf("run %s: %w", o.command[0], err)
		}
		return exitNotFound, fmt.Errorf("run %s: %w", o.command[0], err)
	}
	var sinks []io.Writer
	if o.logFile != "" {
		log, err := openLog(o.logFile, int64(o.logMost)<<20)
		if err != nil && !o.logMayFail {
			return exitNoLog, err
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "go-runner: %v; output goes to standard output only until it can be opened\n", err)
		}
		defer log.Close()
		sinks = append(sinks, log)
	}
	if o.alsoStdout || o.logFile == "" {
		sinks = append(sinks, os.Stdout)
	}

	// Registered before the start: the command may end, or we may be told to stop, at once. SIGPIPE is
	// caught so that a closed standard output is a failed write and not our end.
	signals := make(chan os.Signal, 64)
	signal.Notify(signals, syscall.SIGCHLD, syscall.SIGPIPE, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP,
		syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)

	reader, writer, err := os.Pipe()
	if err != nil {
		return exitCannotRun, err
	}
	stderr := os.Stderr
	if o.redirectStderr {
		stderr = writer
	}
	child, err := os.StartProcess(path, o.command, &os.ProcAttr{Files: []*os.File{os.Stdin, writer, stderr}})
	writer.Close()
	if err != nil {
		return exitCannotRun, fmt.Errorf("run %s: %w", path, err)
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		copyOutput(reader, sinks)
	}()

	status := supervise(child.Pid, signals)
	// What the command wrote last is in the pipe. A process that it left behind may hold the pipe open for ever: don't wait for that.
	if err := reader.SetReadDeadline(time.Now().Add(drainAfterExit)); err != nil {
		return exitCode(status), err
	}
	<-copied
	return exitCode(status), nil
}

// supervise forwards signals to the command and reaps children, its own and those that process 1 inherits, until the command has ended.
func supervise(pid int, signals <-chan os.Signal) syscall.WaitStatus {
	for s := range signals {
		switch s {
		case syscall.SIGPIPE:
		case syscall.SIGCHLD:
			if status, ended := reap(pid); ended {
				return status
			}
		default:
			// An error means that it has just ended; SIGCHLD says the same.
			_ = syscall.Kill(pid, s.(syscall.Signal))
		}
	}
	return 0
}

// reap collects every child that has ended and tells whether pid was among them.
func reap(pid int) (status syscall.WaitStatus, ended bool) {
	for {
		var s syscall.WaitStatus
		got, err := syscall.Wait4(-1, &s, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil || got == 0:
			return status, ended
		case got == pid:
			status, ended = s, true
		}
	}
}

func exitCode(s syscall.WaitStatus) int {
	if s.Signaled() {
		return exitBySignal + int(s.Signal())
	}
	return s.ExitStatus()
}

// copyOutput hands what it reads to every sink. A sink that fails loses this piece and gets the next.
func copyOutput(r io.Reader, sinks []io.Writer) {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			for _, s := range sinks {
				_, _ = s.Write(buf[:n])
			}
		}
		if err != nil {
			return
		}
	}
}
