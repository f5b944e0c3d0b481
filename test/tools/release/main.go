// Command release makes everything of a release below one directory: programs, packages, manual pages, completions, units, settings, a list of
// what is in them, and checksums. The same commit gives the same bytes, from whatever directory.
//
//	go run . -out ../../../dist
//
// It needs Go and git, and a tree without changes.
package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"
)

// architectures of the packages, as Go names them.
var architectures = []string{"amd64", "arm64"}

// programs that are released, each with its package.
var programs = []string{"etcd-manager", "etcd-manager-ctl", "etcd-backup"}

// release is one run.
type release struct {
	root, out string
	commit    string
	date      time.Time
	// program is the version that programs say, pkg the one of packages, which sorts as dpkg and rpm do.
	program, pkg string
	modules      []module // of all programs, after the build
}

func main() {
	root := flag.String("root", "../../..", "the repository")
	out := flag.String("out", "", "directory to make; what was made there before is replaced")
	version := flag.String("version", "", "version, such as 1.2.3 (default: the tag of the commit, else one from its date)")
	changed := flag.Bool("changed", false, "release a tree that has changes")
	flag.Parse()
	if err := run(*root, *out, *version, *changed); err != nil {
		fmt.Fprintf(os.Stderr, "release: %v\n", err)
		os.Exit(1)
	}
}

func run(root, out, version string, changed bool) error {
	if out == "" {
		return errors.New("-out is required")
	}
	r := &release{}
	var err error
	if r.root, err = filepath.Abs(root); err != nil {
		return err
	}
	if r.out, err = filepath.Abs(out); err != nil {
		return err
	}
	if err := r.identify(version, changed); err != nil {
		return err
	}
	if err := r.clear(); err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"programs", r.build}, {"manual pages", r.manuals}, {"completions", r.completions}, {"settings and units", r.settings},
		{"licenses", r.licenses}, {"list of contents", r.contents}, {"packages", r.packages}, {"image", r.image}, {"checksums", r.checksums},
	} {
		fmt.Printf("release %s: %s\n", r.pkg, step.name)
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return nil
}

// command runs a program in the repository and returns what it prints.
func (r *release) command(env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = r.root, append(os.Environ(), env...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, errOut.String(), out.String())
	}
	return out.String(), nil
}

// identify finds out which commit this is, and names the version after it.
func (r *release) identify(version string, changed bool) error {
	status, err := r.command(nil, "git", "status", "--porcelain")
	if err != nil {
		return err
	}
	if status != "" && !changed {
		return fmt.Errorf("the tree has changes, so nobody could make the same release again; commit or remove them:\n%s", status)
	}
	text, err := r.command(nil, "git", "log", "-1", "--format=%H %ct")
	if err != nil {
		return err
	}
	var seconds int64
	if _, err := fmt.Sscanf(text, "%s %d", &r.commit, &seconds); err != nil {
		return fmt.Errorf("git log says %q: %w", text, err)
	}
	r.date = time.Unix(seconds, 0).UTC()
	if version == "" {
		tags, err := r.command(nil, "git", "tag", "--points-at", "HEAD", "--sort=-version:refname")
		if err != nil {
			return err
		}
		for tag := range strings.FieldsSeq(tags) {
			if v, ok := strings.CutPrefix(tag, "v"); ok && version == "" {
				version = v
			}
		}
	}
	if version == "" {
		at := r.date.Format("20060102150405")
		r.program, r.pkg = fmt.Sprintf("v0.0.0-%s-%s", at, r.commit[:12]), fmt.Sprintf("0.0.0~git%s.%s", at, r.commit[:12])
		return nil
	}
	version = strings.TrimPrefix(version, "v")
	if !regexp.MustCompile(`^\d+\.\d+\.\d+(-[0-9A-Za-z.]+)?$`).MatchString(version) {
		return fmt.Errorf("version %q: want a form such as 1.2.3 or 1.2.3-rc.1", version)
	}
	// "~" sorts before everything, as "-" does in semantic versions.
	r.program, r.pkg = "v"+version, strings.Replace(version, "-", "~", 1)
	return nil
}

// clear makes the directory, without what an earlier run has made. A directory of something else is left alone.
func (r *release) clear() error {
	entries, err := os.ReadDir(r.out)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(filepath.Join(r.out, sums)); err != nil && len(entries) > 0 {
		return fmt.Errorf("%s isn't empty and isn't of an earlier release; remove it, or give another directory", r.out)
	}
	if err := os.RemoveAll(r.out); err != nil {
		return err
	}
	// From now on it is ours, also if this run fails.
	return write(filepath.Join(r.out, sums), nil, 0o644)
}

// binary is where a program of an architecture lies.
func (r *release) binary(program, arch string) string {
	return filepath.Join(r.out, "linux-"+arch, program)
}

// build makes the programs.
func (r *release) build() error {
	for _, arch := range architectures {
		for _, program := range append(slices.Clone(programs), "go-runner") { // which is in the image only
			env := []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=", "GOEXPERIMENT=", "GOWORK=off"}
			if _, err := r.command(env, "go", "build", "-trimpath", "-buildvcs=true", "-ldflags", "-s -w -buildid= -X main.version="+r.program,
				"-o", r.binary(program, arch), "./cmd/"+program); err != nil {
				return err
			}
			if err := r.saysCommit(r.binary(program, arch)); err != nil {
				return err
			}
		}
	}
	return nil
}

// saysCommit refuses a program that doesn't know of which commit it is.
func (r *release) saysCommit(path string) error {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return err
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && s.Value == r.commit {
			return nil
		}
	}
	return fmt.Errorf("%s doesn't say its commit %s: Go notes it only where .git is a directory, so make the release in a clone", path, r.commit)
}

// manuals makes the manual pages, from the programs' own commands and flags.
func (r *release) manuals() error {
	dir := filepath.Join(r.out, "man")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, program := range programs {
		if _, err := r.command([]string{"CGO_ENABLED=0", fmt.Sprintf("SOURCE_DATE_EPOCH=%d", r.date.Unix())},
			"go", "test", "-count=1", "-run", "^TestManual$", "./cmd/"+program, "-man="+dir); err != nil {
			return err
		}
	}
	pages, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, page := range pages {
		path := filepath.Join(dir, page.Name())
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := errors.Join(write(path+".gz", zipped(text), 0o644), os.Remove(path)); err != nil {
			return err
		}
	}
	return nil
}

// completions are what the tool itself prints. Its flags are the same on each architecture; this machine can start one of them.
func (r *release) completions() error {
	tool := r.binary("etcd-manager-ctl", runtime.GOARCH)
	if _, err := os.Stat(tool); err != nil || runtime.GOOS != "linux" {
		return fmt.Errorf("releases are made on linux with %s", strings.Join(architectures, " or "))
	}
	for shell, name := range map[string]string{"bash": "etcd-manager-ctl", "zsh": "_etcd-manager-ctl", "fish": "etcd-manager-ctl.fish"} {
		text, err := r.command(nil, tool, "completion", shell)
		if err != nil {
			return err
		}
		if err := write(filepath.Join(r.out, "completions", shell, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// settings copies units and settings. The units of contrib start programs that somebody copied to /usr/local/bin.
func (r *release) settings() error {
	for _, program := range []string{"etcd-manager", "etcd-backup"} {
		text, err := os.ReadFile(filepath.Join(r.root, "contrib/systemd", program+".service"))
		if err != nil {
			return err
		}
		packaged := bytes.ReplaceAll(text, []byte("ExecStart=/usr/local/bin/"), []byte("ExecStart=/usr/bin/"))
		if bytes.Equal(packaged, text) {
			return fmt.Errorf("the unit of %s starts another program", program)
		}
		if err := write(filepath.Join(r.out, "systemd", program+".service"), packaged, 0o644); err != nil {
			return err
		}
	}
	for _, name := range []string{"env", "backup-env"} {
		text, err := os.ReadFile(filepath.Join(r.root, "contrib/packages", name))
		if err != nil {
			return err
		}
		if err := write(filepath.Join(r.out, "config", name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// sums is the file with the checksums of all others.
const sums = "SHA256SUMS"

func (r *release) checksums() error {
	var lines []string
	err := filepath.WalkDir(r.out, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == sums {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(r.out, path)
		lines = append(lines, fmt.Sprintf("%x  %s\n", sha256.Sum256(data), filepath.ToSlash(rel)))
		return err
	})
	if err != nil {
		return err
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[64:], b[64:]) })
	return write(filepath.Join(r.out, sums), []byte(strings.Join(lines, "")), 0o644)
}

func write(path string, data []byte, perm fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, data, perm); err != nil {
		return err
	}
	return os.Chmod(path, perm) // whatever the umask is
}

// zipped is compressed without name and time.
func zipped(data []byte) []byte {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err == nil {
		_, err = w.Write(data)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		panic(err) // a buffer takes everything
	}
	return b.Bytes()
}
