package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// MaxKeyLength is the longest key in bytes. S3 allows 1024 for base and key together.
const MaxKeyLength = 900

// maxPartLength is the longest part of a key in bytes; file systems allow 255 for a name.
const maxPartLength = 240

// CheckKey says what is wrong with a key, or nil. A key is valid UTF-8 without control characters and
// backslashes, at most MaxKeyLength bytes long; its parts, separated by "/", are not empty and
// neither "." nor "..".
func CheckKey(key string) error {
	if key == "" {
		return errors.New("the key is empty")
	}
	if err := checkText(key); err != nil {
		return err
	}
	for part := range strings.SplitSeq(key, "/") {
		switch {
		case part == "":
			return fmt.Errorf("key %q has an empty part", key)
		case part == "." || part == "..":
			return fmt.Errorf("key %q has a part %q", key, part)
		case len(part) > maxPartLength:
			return fmt.Errorf("key %q has a part of %d bytes, more than %d", key, len(part), maxPartLength)
		}
	}
	return nil
}

// CheckPrefix says what is wrong with a prefix for List or Purge, or nil. A prefix is the beginning of
// a key, so it may be empty and may end within a part or with "/".
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	if err := checkText(prefix); err != nil {
		return err
	}
	parts := strings.Split(prefix, "/")
	for _, part := range parts[:len(parts)-1] {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("prefix %q has a part %q", prefix, part)
		}
	}
	return nil
}

// CheckPut says what is wrong with the arguments of a put, or nil.
func CheckPut(key string, opts PutOptions) error {
	if opts.IfAbsent && opts.IfVersion != "" {
		return errors.New("a put can't ask for absence and for a version at once")
	}
	if opts.Hide && opts != (PutOptions{Hide: true}) {
		return errors.New("a put that hides an object has no condition")
	}
	return CheckKey(key)
}

// CheckList says what is wrong with the arguments of a listing, or nil.
func CheckList(prefix string, opts ListOptions) error {
	if opts.Delimiter != "" && opts.Delimiter != "/" {
		return fmt.Errorf("delimiter %q is not \"/\"", opts.Delimiter)
	}
	return CheckPrefix(prefix)
}

func checkText(s string) error {
	if len(s) > MaxKeyLength {
		return fmt.Errorf("key of %d bytes is longer than %d", len(s), MaxKeyLength)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("key %q is not valid UTF-8", s)
	}
	if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '\\' }) {
		return fmt.Errorf("key %q has a control character or a backslash", s)
	}
	return nil
}

// CheckGet says what is wrong with the arguments of a get, as far as it can be told without the object, or nil.
func CheckGet(key string, r Range) error {
	if r.Offset < 0 || r.Length < 0 {
		return fmt.Errorf("range %d+%d is negative", r.Offset, r.Length)
	}
	return CheckKey(key)
}

// Header is the range as HTTP's Range header has it; empty for the whole object. r is one that CheckGet has found right.
func (r Range) Header() string {
	switch {
	case r.Length > 0:
		return fmt.Sprintf("bytes=%d-%d", r.Offset, r.Offset+r.Length-1)
	case r.Offset > 0:
		return fmt.Sprintf("bytes=%d-", r.Offset)
	}
	return ""
}

// CheckRange says what is wrong with a range of an object of the given size, or nil, and returns the number of
// bytes that it selects. An offset behind the last byte is wrong, except offset 0 of an empty object.
func CheckRange(r Range, size int64) (int64, error) {
	if r.Offset < 0 || r.Length < 0 {
		return 0, fmt.Errorf("range %d+%d is negative", r.Offset, r.Length)
	}
	if r.Offset > 0 && r.Offset >= size {
		return 0, fmt.Errorf("range begins at %d, the object has %d bytes", r.Offset, size)
	}
	rest := size - r.Offset
	if r.Length > 0 && r.Length < rest {
		return r.Length, nil
	}
	return rest, nil
}

// ReadAll reads a whole object of at most limit bytes; a longer one is an error of kind ErrInvalid, so that a
// tampered object cannot exhaust the memory. All errors are those of Get, or *Error.
func ReadAll(ctx context.Context, s Store, key string, limit int64) ([]byte, Info, error) {
	rc, info, err := s.Get(ctx, key, Range{})
	if err != nil {
		return nil, Info{}, err
	}
	defer rc.Close()
	if info.Size > limit {
		return nil, Info{}, &Error{Op: "get", Key: key, Kind: ErrInvalid,
			Err: fmt.Errorf("the object has %d bytes, at most %d are expected", info.Size, limit)}
	}
	data, err := io.ReadAll(io.LimitReader(rc, limit+1))
	if err != nil {
		return nil, Info{}, err
	}
	if int64(len(data)) > limit {
		return nil, Info{}, &Error{Op: "get", Key: key, Kind: ErrInvalid,
			Err: fmt.Errorf("the object has more than the expected %d bytes", limit)}
	}
	return data, info, nil
}
