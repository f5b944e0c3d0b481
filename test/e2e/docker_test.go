package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// docker runs the docker command and returns what it prints, without the last newline.
func docker(ctx context.Context, args ...string) (string, error) {
	out, err := dockerIO(ctx, nil, args...)
	return strings.TrimRight(string(out), "\n"), err
}

func dockerIO(ctx context.Context, in io.Reader, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "docker", args...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.Bytes(), fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.Bytes(), nil
}

// mustDocker is docker for what can't fail. What can hang ends with it.
func mustDocker(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := docker(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var errNoFile = errors.New("no such file in the container")

// containerFile reads a file of a container, running or not. Docker's archive is empty if the file goes away while it is made.
func containerFile(container, path string) (data []byte, err error) {
	for range 5 {
		if data, err = copyOut(container, path); !errors.Is(err, io.EOF) {
			break
		}
	}
	return data, err
}

func copyOut(container, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := dockerIO(ctx, nil, "cp", container+":"+path, "-")
	if err != nil {
		if s := err.Error(); strings.Contains(s, "Could not find the file") ||
			strings.Contains(s, "No such container:path") || strings.Contains(s, "no such file or directory") {
			return nil, fmt.Errorf("%s in %s: %w", path, container, errNoFile)
		}
		return nil, err
	}
	r := tar.NewReader(bytes.NewReader(out))
	if _, err := r.Next(); err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", path, container, err)
	}
	return io.ReadAll(r)
}

// containerDir lists the entries of a directory in a container's volumes. One that isn't there has none.
func containerDir(t testing.TB, container, path string) []string {
	t.Helper()
	out := mustDocker(t, "run", "--rm", "--label", label(), "--network", "none", "--volumes-from", container+":ro",
		must(t, cutImage), "list", path)
	return strings.Fields(out)
}

// putFile writes a file into a container, running or not.
func putFile(t testing.TB, container, dir, name string, content []byte) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := dockerIO(ctx, &b, "cp", "-", container+":"+dir); err != nil {
		t.Fatal(err)
	}
}

// waitFor polls until why returns "", and fails the test with its last answer if that takes too long.
func waitFor(t testing.TB, what string, within time.Duration, why func() string) {
	t.Helper()
	began := time.Now()
	for {
		reason := why()
		if reason == "" {
			t.Logf("%s: after %s", what, time.Since(began).Round(100*time.Millisecond))
			return
		}
		if time.Since(began) > within {
			t.Fatalf("%s: not within %s: %s", what, within, reason)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// dockerBoth is docker with standard output and standard error in one.
func dockerBoth(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("docker %s: %w", strings.Join(args, " "), err)
	}
	return string(out), nil
}

// contextOf bounds one command of a test.
func contextOf(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), time.Minute)
}
