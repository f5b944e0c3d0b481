package etcd

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

func TestVerifyStream(t *testing.T) {
	db := bytes.Repeat([]byte("0123456789abcdef"), 64)
	sum := sha256.Sum256(db)
	good := append(bytes.Clone(db), sum[:]...)
	for name, r := range map[string]io.Reader{
		"at once": bytes.NewReader(good), "byte by byte": iotest.OneByteReader(bytes.NewReader(good)),
		"half": iotest.HalfReader(bytes.NewReader(good)), "data with EOF": iotest.DataErrReader(bytes.NewReader(good)),
	} {
		for _, size := range []int64{0, int64(len(good))} {
			v := VerifyStream(r, size)
			got, err := io.ReadAll(v)
			if err != nil || !bytes.Equal(got, good) || v.Sum() != fmt.Sprintf("%x", sum) {
				t.Errorf("%s: %v", name, err)
			}
			if s, ok := r.(io.Seeker); ok {
				_, err := s.Seek(0, io.SeekStart)
				testutil.Must(t, err)
			} else {
				break
			}
		}
	}
	if _, err := io.ReadAll(VerifyStream(bytes.NewReader(good), int64(len(good))+512)); !errors.Is(err, ErrBadSnapshot) {
		t.Errorf("shorter than announced: %v", err)
	}
	if _, err := io.ReadAll(VerifyStream(bytes.NewReader(good), 544)); !errors.Is(err, ErrBadSnapshot) {
		t.Errorf("longer than announced: %v", err)
	}
	broken := errors.New("connection lost")
	if _, err := io.ReadAll(VerifyStream(io.MultiReader(bytes.NewReader(good), iotest.ErrReader(broken)), 0)); !errors.Is(err, broken) {
		t.Errorf("broken stream: %v", err)
	}
	if _, err := io.ReadAll(VerifyStream(io.MultiReader(bytes.NewReader(good[:600]), iotest.ErrReader(io.ErrUnexpectedEOF)), 0)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut compressed stream: %v", err)
	}
}
