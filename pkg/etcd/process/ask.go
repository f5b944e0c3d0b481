package process

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"time"
)

const (
	// scanTime bounds how long executables are asked for their versions in one go.
	scanTime = 10 * time.Second
	// An executable that couldn't be asked is asked again after a while, which doubles.
	askAgain, askAgainMax = time.Minute, time.Hour
	// versionSize bounds what is read of an executable's answer.
	versionSize = 4 << 10
)

// answer is what an executable has said of itself.
type answer struct {
	version string
	err     error
	again   time.Time
	wait    time.Duration
}

// content stands for what is in an executable of Go. The same one may lie on many volumes, which are many devices.
type content struct {
	size    int64
	buildID string
}

var versionLine = regexp.MustCompile(`(?m)^etcd Version: v?(\d+\.\d+\.\d+(?:-[0-9A-Za-z.-]+)?)`)

// version is what an executable says that it is. It is run for that once; a failure is tried again more and more rarely.
func (b *Binaries) version(ctx context.Context, path string, f *os.File, id exeID) (string, error) {
	b.asking.Lock()
	defer b.asking.Unlock()
	a, known := b.remembered(id, f)
	if !known || a.err != nil && time.Now().After(a.again) {
		if ctx.Err() != nil {
			return "", fmt.Errorf("%w: %s wasn't asked for its version yet, as others took long", ErrNoBinary, path)
		}
		a.version, a.err = askVersion(ctx, path, f)
		a.wait = min(max(2*a.wait, askAgain), askAgainMax)
		a.again = time.Now().Add(a.wait)
		b.remember(id, f, a)
	}
	return a.version, a.err
}

func (b *Binaries) remembered(id exeID, f *os.File) (answer, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a, ok := b.said[id]; ok {
		return a, true
	}
	if c := contentOf(id, f); c.buildID != "" {
		if other, ok := b.alike[c]; ok && b.said[other].err == nil {
			b.said[id] = b.said[other]
			return b.said[id], true
		}
	}
	return answer{}, false
}

func (b *Binaries) remember(id exeID, f *os.File, a answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	const most = 10_000 // files come and go while a manager runs
	if b.said == nil || len(b.said) > most {
		b.said, b.alike = map[exeID]answer{}, map[content]exeID{}
	}
	b.said[id] = a
	if c := contentOf(id, f); c.buildID != "" {
		b.alike[c] = id
	}
}

// contentOf reads the id that Go's linker gives each program.
func contentOf(id exeID, f *os.File) content {
	x, err := elf.NewFile(f)
	if err != nil {
		return content{}
	}
	s := x.Section(".note.go.buildid")
	if s == nil || s.Size > versionSize {
		return content{}
	}
	note, err := s.Data()
	if err != nil || len(note) <= 16 {
		return content{}
	}
	return content{size: id.size, buildID: string(note[16:])}
}

func askVersion(ctx context.Context, path string, f *os.File) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, scanTime)
	defer cancel()
	out, w, err := os.Pipe()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", path, err)
	}
	defer out.Close()
	c := runFile([]string{path, "--version"}, f)
	c.Stdout, c.Stderr, c.Env = w, w, []string{}
	err = errors.Join(c.Start(), w.Close())
	if err != nil {
		return "", fmt.Errorf("%w: %s can't be run: %w", ErrNoBinary, path, err)
	}
	stop := context.AfterFunc(ctx, func() {
		_ = c.Process.Kill() // it may have ended
		_ = out.SetReadDeadline(time.Now())
	})
	said, _ := io.ReadAll(io.LimitReader(out, versionSize))
	if !stop() || len(said) == versionSize {
		_ = c.Process.Kill()
	}
	return readVersion(path, string(said), c.Wait(), ctx.Err())
}

// readVersion makes sense of what was said and how it ended.
func readVersion(path, said string, err, late error) (string, error) {
	var ended *exec.ExitError
	switch m := versionLine.FindStringSubmatch(said); {
	case late != nil:
		return "", fmt.Errorf("%w: %s didn't say its version in time", ErrNoBinary, path)
	case errors.As(err, &ended):
		return "", fmt.Errorf("%w: %s can't be run: %w", ErrNoBinary, path, err)
	case m == nil:
		if len(said) > 60 {
			said = said[:60]
		}
		return "", fmt.Errorf("%w: %s says that it is %q", ErrNoBinary, path, said)
	default:
		return m[1], nil
	}
}
