package background

import "os"

// smallStep is as much on its way to the disk as an etcd on the same one doesn't wait for when it writes its log.
const smallStep = 1 << 20

// Steady writes a file from its beginning to its end, and only that: its errors are the file's.
// What is written goes to the disk all along in small steps, so that the sync in the end, which is
// the caller's, has little left to do. It is for one goroutine at a time.
type Steady struct {
	f    *os.File
	step int64
	// written counts bytes, begun those of which the kernel was told to bring them to the disk.
	written, begun int64
	err            error // of bringing bytes to the disk; it stays
	out            func(f *os.File, from, n int64) error
}

// NewSteady returns a writer for an empty file.
func NewSteady(f *os.File) *Steady { return newSteady(f, smallStep) }

func newSteady(f *os.File, step int64) *Steady { return &Steady{f: f, step: step, out: writeOut} }

// Write implements io.Writer. It fails too if earlier bytes did not reach the disk, and goes on failing then.
func (s *Steady) Write(p []byte) (n int, err error) {
	for err = s.err; len(p) > 0 && err == nil; {
		var m int
		m, err = s.f.Write(p[:min(len(p), int(s.step))])
		p = p[m:]
		n += m
		s.written += int64(m)
		if err == nil {
			err = s.flush()
		}
	}
	return n, err
}

// flush starts the writing of the newest step and waits for the one before.
func (s *Steady) flush() error {
	if s.written-s.begun < s.step {
		return nil
	}
	from := max(0, s.begun-s.step)
	s.err = s.out(s.f, from, s.written-from)
	s.begun = s.written
	return s.err
}
