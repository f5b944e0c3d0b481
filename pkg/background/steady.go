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
}

// NewSteady returns a writer for an empty file.
func NewSteady(f *os.File) *Steady { return &Steady{f: f, step: smallStep} }

// Write implements io.Writer.
func (s *Steady) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		var m int
		m, err = s.f.Write(p[:min(len(p), int(s.step))])
		p = p[m:]
		n += m
		s.written += int64(m)
		s.flush()
	}
	return n, err
}

// flush starts the writing of the newest step and waits for the one before. Only a matter of pace: what counts is the sync in the end.
func (s *Steady) flush() {
	if s.written-s.begun < s.step {
		return
	}
	from := max(0, s.begun-s.step)
	writeOut(s.f, from, s.written-from)
	s.begun = s.written
}
