package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Host is the machine on which volumes are mounted. Its methods may be called concurrently and any number of times.
type Host interface {
	// Do runs f where paths are the machine's own. f must do what it does itself, in no other goroutine. It returns f's error, or one that
	// says why the machine's file system can't be reached.
	Do(f func() error) error
	// Run runs one of the machine's tools and returns what it printed and its exit code. An error
	// means that it could not be run, or that the context ended, which kills it.
	Run(ctx context.Context, tool string, args ...string) (output string, code int, err error)
	// Visible returns the path under which this process sees a directory of the machine that lies on the file system with the device number
	// dev, or an error that wraps ErrNotMounted.
	Visible(dir string, dev uint64) (string, error)
	// Processes is the directory where the machine's processes are seen, as /proc.
	Processes() string
}

// toolDirs are where tools are looked for, whatever the process's own PATH.
func toolDirs() []string {
	return []string{"/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"}
}

// findTool returns the path of a tool.
func findTool(tool string) (string, error) {
	for _, dir := range toolDirs() {
		path := filepath.Join(dir, tool)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("this machine has no %s in %s; install the package that has it (e2fsprogs for mkfs.ext4, e2fsck and resize2fs, util-linux for blkid)", tool, strings.Join(toolDirs(), ":"))
}

// start finds and starts a tool where the caller is.
func start(ctx context.Context, out *bytes.Buffer, tool string, args []string) (*exec.Cmd, error) {
	path, err := findTool(tool)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = []string{"PATH=" + strings.Join(toolDirs(), ":"), "LC_ALL=C"}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("run %s: %w", tool, err)
	}
	return cmd, nil
}

// finish waits for a tool.
func finish(ctx context.Context, cmd *exec.Cmd, out *bytes.Buffer) (string, int, error) {
	err := cmd.Wait()
	text := strings.TrimSpace(out.String())
	var exit *exec.ExitError
	switch {
	case err == nil:
		return text, 0, nil
	case ctx.Err() != nil:
		return text, -1, context.Cause(ctx)
	case errors.As(err, &exit) && exit.Exited():
		return text, exit.ExitCode(), nil
	}
	return text, -1, fmt.Errorf("run %s: %w: %s", filepath.Base(cmd.Path), err, text)
}

// Direct is the machine that this process runs on, seen directly.
type Direct struct{}

// Do calls f.
func (Direct) Do(f func() error) error { return f() }

// Processes is /proc.
func (Direct) Processes() string { return "/proc" }

// Run runs a tool as a child process.
func (Direct) Run(ctx context.Context, tool string, args ...string) (string, int, error) {
	var out bytes.Buffer
	cmd, err := start(ctx, &out, tool, args)
	if err != nil {
		return "", -1, err
	}
	return finish(ctx, cmd, &out)
}

// Visible returns dir itself if it lies on that file system.
func (Direct) Visible(dir string, dev uint64) (string, error) {
	return visible(dev, dir)
}

// visible returns the first of the paths that lies on the file system with the device number dev.
func visible(dev uint64, paths ...string) (string, error) {
	var errs []error
	for _, path := range paths {
		got, err := deviceOf(path)
		switch {
		case err != nil:
			errs = append(errs, err)
		case got != dev:
			errs = append(errs, fmt.Errorf("%s is on another file system: %w", path, ErrNotMounted))
		default:
			return path, nil
		}
	}
	return "", errors.Join(errs...)
}
