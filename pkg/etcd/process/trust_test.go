package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const nobody = 65534

// TestUntrusted runs nothing that others than root, or the user of this test, can have written, and names the part of the path.
func TestUntrusted(t *testing.T) {
	needsRoot := map[string]bool{"directory of nobody": true, "file of nobody": true, "link of nobody": true, "above of nobody": true}
	for name, spoil := range map[string]func(root, dir, file string) (named string, err error){
		"directory of nobody": func(_, dir, _ string) (string, error) { return dir, os.Chown(dir, nobody, nobody) },
		"file of nobody":      func(_, _, file string) (string, error) { return file, os.Chown(file, nobody, nobody) },
		"above of nobody": func(root, _, _ string) (string, error) {
			return filepath.Dir(root), os.Chown(filepath.Dir(root), nobody, nobody)
		},
		"file for all":      func(_, _, file string) (string, error) { return file, os.Chmod(file, 0o777) },
		"directory for all": func(_, dir, _ string) (string, error) { return dir, os.Chmod(dir, 0o777) },
		"root for all":      func(root, _, _ string) (string, error) { return root, os.Chmod(root, 0o777) },
		"root like /tmp":    func(root, _, _ string) (string, error) { return root, os.Chmod(root, 0o777|os.ModeSticky) },
		"above for all": func(root, _, _ string) (string, error) {
			return filepath.Dir(root), os.Chmod(filepath.Dir(root), 0o777)
		},
		"link into a directory for all": func(_, dir, file string) (string, error) {
			to := filepath.Join(filepath.Dir(filepath.Dir(dir)), "elsewhere")
			err := errors.Join(os.Mkdir(to, 0o755), os.Rename(file, filepath.Join(to, "etcd")), os.Symlink("../../elsewhere/etcd", file), os.Chmod(to, 0o777))
			return to, err
		},
		"link of nobody": func(_, _, file string) (string, error) {
			err := errors.Join(os.Rename(file, file+"-real"), os.Symlink("etcd-real", file), os.Lchown(file, nobody, nobody))
			return file, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			if needsRoot[name] && os.Geteuid() != 0 {
				t.Skip("only root can give a file away")
			}
			root := filepath.Join(t.TempDir(), "above", "opt")
			file := fake(t, root, "3.5.99", "", "3.5.99", 0o755)
			b := &Binaries{Roots: []string{root}}
			if got := b.Versions(); !slices.Equal(got, []string{"3.5.99"}) {
				t.Fatalf("before: %v", got)
			}
			named, err := spoil(root, filepath.Dir(file), file)
			must(t, err)
			if got := (&Binaries{Roots: []string{root}}).Versions(); len(got) != 0 {
				t.Errorf("it would run %v", got)
			}
			_, err = b.Nearest("3.5.99") // though it has been asked before
			if err == nil || !strings.Contains(err.Error(), named+" ") || !strings.Contains(err.Error(), "mode") {
				t.Errorf("got %v, want a refusal that names %s and its mode", err, named)
			}
			p, err := Start(CommandLine{Argv: []string{file}, DataDir: "/nonexistent"}, StartOptions{PIDFile: filepath.Join(t.TempDir(), "pid")})
			if asRoot := CheckRoot(root); asRoot == nil || strings.HasPrefix(name, "above") {
				if !errors.Is(err, ErrUntrusted) {
					t.Errorf("started: %v %v", p, err)
				}
			}
		})
	}
	if err := CheckRoot("/tmp"); !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), "/tmp") || !strings.Contains(err.Error(), "1777") {
		t.Errorf("/tmp: %v", err)
	}
	if err := CheckRoot(filepath.Join(t.TempDir(), "absent")); err != nil {
		t.Errorf("a directory that isn't there: %v", err)
	}
}

// TestTrustedPlaces runs what lies as images and volumes have it: behind links of root, below a directory like /tmp.
func TestTrustedPlaces(t *testing.T) {
	above := t.TempDir()
	must(t, os.Chmod(above, 0o777|os.ModeSticky))
	real := filepath.Join(above, "image")
	fake(t, real, "3.5.31", "usr/local/bin", "3.5.31", 0o755)
	must(t, os.Symlink("etcd-v3.5.31", filepath.Join(real, "etcd-v3.5.9")))
	link := filepath.Join(above, "opt")
	must(t, os.Symlink(real, link))
	b := &Binaries{Roots: []string{link}}
	if bin, err := b.Nearest("3.5.9"); err != nil || bin.Version != "3.5.31" {
		t.Errorf("%+v %v", bin, err)
	}
}

// TestSwapped runs the file that was asked for its version, or nothing.
func TestSwapped(t *testing.T) {
	root := t.TempDir()
	file := fake(t, root, "3.5.31", "", "3.5.31", 0o755)
	bin, err := (&Binaries{Roots: []string{root}}).Nearest("3.5.31")
	must(t, err)
	cfg := smallConfig()
	cfg.DataDir = filepath.Join(root, "data")
	cmd, err := Command(cfg, bin)
	must(t, err)
	// What was opened runs, whatever becomes of its path.
	c, opened, err := cmd.Executable()
	must(t, err)
	defer opened.Close()
	must(t, os.Remove(file))
	must(t, os.WriteFile(file, []byte("#!/bin/sh\necho swapped\n"), 0o755))
	out, err := c.Output()
	if err != nil || !strings.Contains(string(out), "3.5.31") {
		t.Errorf("ran %q %v", out, err)
	}
	if _, err := Start(cmd, StartOptions{PIDFile: filepath.Join(root, "pid")}); !errors.Is(err, ErrNoBinary) || !strings.Contains(fmt.Sprint(err), "replaced") {
		t.Errorf("another file: %v", err)
	}
}
