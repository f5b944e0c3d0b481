package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

func (s *suite) largeConditional() {
	if s.caps.PartSize == 0 {
		s.Skip("this store has no parts")
	}
	first, second := pattern(s.caps.PartSize*2, 1), pattern(s.caps.PartSize*2, 2)
	info := s.mustPut("large", first, blob.PutOptions{IfAbsent: true})
	_, err := s.put("large", second, blob.PutOptions{IfAbsent: true})
	s.wantError("second create", err, blob.ErrPreconditionFailed)
	s.wantContent("large", first)
	next := s.mustPut("large", second, blob.PutOptions{IfVersion: info.Version})
	_, err = s.put("large", first, blob.PutOptions{IfVersion: info.Version})
	s.wantError("put with a stale version", err, blob.ErrPreconditionFailed)
	s.wantContent("large", second)
	if s.caps.NoLargeConditions {
		return
	}
	// The object changes after the upload began: only the condition of its end can notice.
	body := &hookReader{Reader: bytes.NewReader(first), at: s.caps.PartSize + 1, hook: func() {
		if _, err := s.put("large", []byte("in between"), blob.PutOptions{IfVersion: next.Version}); err != nil {
			s.Error(err)
		}
	}}
	_, err = s.store.Put(s.Context(), "large", body, blob.PutOptions{IfVersion: next.Version})
	s.wantError("put that lost a race", err, blob.ErrPreconditionFailed)
	s.wantContent("large", []byte("in between"))
}

// hookReader calls hook once, when at bytes were read.
type hookReader struct {
	io.Reader
	at   int64
	hook func()
}

func (h *hookReader) Read(p []byte) (int, error) {
	if h.at <= 0 && h.hook != nil {
		h.hook()
		h.hook = nil
	}
	if int64(len(p)) > h.at && h.at > 0 {
		p = p[:h.at]
	}
	n, err := h.Reader.Read(p)
	h.at -= int64(n)
	return n, err
}

func (s *suite) failingSizes() []int64 {
	if p := s.caps.PartSize; p > 0 {
		return []int64{0, 100, 2*p + 5}
	}
	return []int64{0, 100, 1 << 20}
}

func (s *suite) bodyFails() {
	broken := errors.New("the source broke")
	for _, n := range s.failingSizes() {
		body := func() io.Reader {
			return io.MultiReader(bytes.NewReader(pattern(n, 1)), &hookReader{Reader: errReader{broken}})
		}
		key := fmt.Sprintf("failing-%d", n)
		_, err := s.store.Put(s.Context(), key, body(), blob.PutOptions{})
		s.wantError("Put", err, broken)
		if errors.Is(err, blob.ErrTransient) || errors.Is(err, blob.ErrNotFound) || errors.Is(err, blob.ErrDenied) {
			s.Errorf("an error of the body is blamed on the store: %v", err)
		}
		s.wantAbsent(key)
		s.mustPut(key, []byte("old"), blob.PutOptions{})
		_, err = s.store.Put(s.Context(), key, body(), blob.PutOptions{})
		s.wantError("Put", err, broken)
		s.wantContent(key, []byte("old"))
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func (s *suite) bodyCanceled() {
	for _, n := range s.failingSizes() {
		ctx, cancel := context.WithCancel(s.Context())
		key := fmt.Sprintf("canceled-%d", n)
		body := &hookReader{Reader: bytes.NewReader(pattern(n+1000, 1)), at: n, hook: cancel}
		_, err := s.store.Put(ctx, key, body, blob.PutOptions{})
		cancel()
		s.wantError("Put", err, context.Canceled)
		s.wantAbsent(key)
	}
}

func (s *suite) invisible() {
	for _, n := range s.failingSizes() {
		key := fmt.Sprintf("dir/slow-%d", n)
		data := pattern(n+1000, 1)
		body := &hookReader{Reader: bytes.NewReader(data), at: n, hook: func() {
			s.wantAbsent(key)
			if got := s.keys("", blob.ListOptions{}); len(got) != 0 {
				s.Errorf("during the upload List = %q", got)
			}
		}}
		if _, err := s.store.Put(s.Context(), key, body, blob.PutOptions{}); err != nil {
			s.Fatal(err)
		}
		s.wantContent(key, data)
		if _, err := s.store.Purge(s.Context(), "", func(string) bool { return true }); err != nil {
			s.Fatal(err)
		}
	}
}

func (s *suite) ranges() {
	data := pattern(100_000, 3)
	s.mustPut("k", data, blob.PutOptions{})
	s.mustPut("empty", nil, blob.PutOptions{})
	for _, tt := range []struct{ offset, length, from, to int64 }{
		{0, 0, 0, 100_000}, {0, 1, 0, 1}, {0, 100_000, 0, 100_000}, {0, 200_000, 0, 100_000}, {99_999, 0, 99_999, 100_000},
		{50_000, 0, 50_000, 100_000}, {50_000, 10, 50_000, 50_010}, {99_990, 1000, 99_990, 100_000},
	} {
		got, info, err := s.get("k", blob.Range{Offset: tt.offset, Length: tt.length})
		if err != nil || !bytes.Equal(got, data[tt.from:tt.to]) || info.Size != 100_000 {
			s.Errorf("Get(%d+%d) = %d bytes, %+v, %v", tt.offset, tt.length, len(got), info, err)
		}
	}
	for _, r := range []blob.Range{{Offset: 100_000}, {Offset: 100_001, Length: 5}, {Offset: -1}, {Length: -1}} {
		_, _, err := s.get("k", r)
		s.wantError(fmt.Sprintf("Get %+v", r), err, blob.ErrInvalid)
	}
	for _, r := range []blob.Range{{}, {Length: 10}} {
		if got, _, err := s.get("empty", r); err != nil || len(got) != 0 {
			s.Errorf("Get of an empty object, %+v = %q, %v", r, got, err)
		}
	}
}

func (s *suite) replacedWhileRead() {
	old, replacement := pattern(4<<20, 1), pattern(4<<20, 2)
	s.mustPut("k", old, blob.PutOptions{})
	rc, _, err := s.store.Get(s.Context(), "k", blob.Range{})
	if err != nil {
		s.Fatal(err)
	}
	defer rc.Close()
	head := make([]byte, 1000)
	if _, err := io.ReadFull(rc, head); err != nil {
		s.Fatal(err)
	}
	s.mustPut("k", replacement, blob.PutOptions{})
	rest, err := io.ReadAll(rc)
	if err == nil && !bytes.Equal(append(head, rest...), old) {
		s.Errorf("the reader returned a mixture of two versions without an error")
	}
	s.wantContent("k", replacement)
}
