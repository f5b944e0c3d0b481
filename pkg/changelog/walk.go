package changelog

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// walker reads the entries of a segment's content. It holds a small entry, or a part of a large transaction.
type walker struct {
	c        *Content
	in       *bufio.Reader
	most     bounds
	marks    bool
	visit    func(Entry) error
	last     int64
	mark     int64
	changes  int64
	leases   int64
	size     int64
	visitErr error
	buf      []byte
}

var errEntry = errors.New("an entry can't be read")

func (w *walker) run() error {
	for {
		n, err := binary.ReadUvarint(w.in)
		if err == io.EOF {
			break
		}
		if err == nil {
			err = w.entry(n)
		}
		if err != nil {
			return err
		}
	}
	h := w.c.Header
	switch {
	case w.last != h.GetLastRevision() || w.mark != h.GetEndedUnixMillis():
		return fmt.Errorf("it ends with revision %d, its header says %d", w.last, h.GetLastRevision())
	case w.changes != h.GetChanges() || w.size != h.GetContentSize():
		return fmt.Errorf("it has %d changes in %d bytes, its header says %d in %d", w.changes, w.size, h.GetChanges(), h.GetContentSize())
	}
	return nil
}

// entry reads one of n bytes.
func (w *walker) entry(n uint64) error {
	if n > maxEntry {
		return fmt.Errorf("an entry of %d bytes is too large", n)
	}
	w.size += int64(protowire.SizeVarint(n)) + int64(n)
	if most := w.c.Header.GetContentSize(); w.size > most { // a little can be decompressed to very much
		return fmt.Errorf("it has more than the %d bytes that its header says", most)
	}
	if n > smallEntry {
		return w.large(&messageReader{in: w.in, left: int64(n)})
	}
	if w.buf == nil {
		w.buf = make([]byte, smallEntry)
	}
	b := w.buf[:n]
	if _, err := io.ReadFull(w.in, b); err != nil {
		return cut(err)
	}
	var p protosv1.SegmentEntry
	if err := proto.Unmarshal(b, &p); err != nil {
		return errEntry
	}
	return w.take(Entry{Transaction: p.GetTransaction(), Mark: p.GetMark(), Lease: p.GetLease()})
}

// cut makes an end in the midst of something an error.
func cut(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// take checks an entry and hands it on.
func (w *walker) take(e Entry) error {
	if err := w.check(e); err != nil {
		return err
	}
	w.visitErr = w.visit(e)
	return w.visitErr
}

// check makes sure that revisions follow on each other, that times don't go back, and that there aren't more changes than there can be.
func (w *walker) check(e Entry) error {
	switch {
	case e.Transaction != nil:
		if e.Sub == 0 {
			if e.Transaction.GetRevision() != w.last+1 {
				return fmt.Errorf("revision %d comes after %d", e.Transaction.GetRevision(), w.last)
			}
			w.last++
		}
		w.changes += int64(len(e.Transaction.GetChanges()))
		return w.counted()
	case e.Mark != nil:
		if e.Mark.GetRevision() != w.last || e.Mark.GetUnixMillis() < w.mark {
			return fmt.Errorf("a heartbeat of revision %d comes after revision %d", e.Mark.GetRevision(), w.last)
		}
		w.mark = e.Mark.GetUnixMillis()
	case e.Lease != nil:
		if w.leases++; w.leases > w.most.changes {
			return fmt.Errorf("it has more than %d leases", w.most.changes)
		}
	}
	return nil
}

func (w *walker) counted() error {
	if most := w.c.Header.GetChanges(); w.changes > most {
		return fmt.Errorf("it has more than the %d changes that its header says", most)
	}
	return nil
}

// Numbers of fields in changelog.proto.
const (
	entryTransaction    = 1
	transactionRevision = 1
	transactionChanges  = 2
)

// large reads an entry that isn't held as a whole. Its revision stands before its changes, as every writer of segments has it.
func (w *walker) large(m *messageReader) error {
	num, typ, err := m.tag()
	if err != nil {
		return err
	}
	if typ != protowire.BytesType || num != entryTransaction {
		return fmt.Errorf("%w: only a transaction is as large as %d bytes", errEntry, m.left)
	}
	n, err := m.uvarint()
	if err != nil {
		return err
	}
	if n != uint64(m.left) {
		return errEntry
	}
	p := part{w: w}
	for m.left > 0 {
		if err := p.field(m); err != nil {
			return err
		}
	}
	return p.flush()
}

// part is what was read of a large transaction and not handed on yet.
type part struct {
	w        *walker
	revision int64
	changes  []*protosv1.Change
	bytes    int64
	sub      int
	flushed  bool
}

func (p *part) field(m *messageReader) error {
	num, typ, err := m.tag()
	switch {
	case err != nil:
		return err
	case num == transactionRevision && typ == protowire.VarintType && p.revision == 0:
		n, err := m.uvarint()
		p.revision = int64(n)
		return err
	case num != transactionChanges || typ != protowire.BytesType:
		return m.skip(typ)
	}
	n, err := m.uvarint()
	switch {
	case err != nil:
		return err
	case n > uint64(m.left) || p.revision == 0:
		return errEntry
	case int64(n) > p.w.most.record:
		return fmt.Errorf("a change of %d bytes is too large: one of %d stored bytes has at most %d", n, p.w.c.stored, p.w.most.record)
	case p.w.marks:
		p.w.changes++
		if err := p.w.counted(); err != nil {
			return err
		}
		return m.discard(int64(n))
	}
	return p.change(m, int64(n))
}

func (p *part) change(m *messageReader, n int64) error {
	if len(p.changes) > 0 && (p.bytes+n > maxPart || len(p.changes) == maxPartChanges) {
		if err := p.flush(); err != nil {
			return err
		}
	}
	b, err := m.bytes(n)
	if err != nil {
		return err
	}
	c := &protosv1.Change{}
	if proto.Unmarshal(b, c) != nil {
		return errEntry
	}
	p.changes, p.bytes = append(p.changes, c), p.bytes+n
	return nil
}

// flush hands on what there is. Of a transaction that is passed over that is nothing but its revision.
func (p *part) flush() error {
	if p.flushed && len(p.changes) == 0 {
		return nil
	}
	e := Entry{Transaction: &protosv1.Transaction{Revision: p.revision, Changes: p.changes}, Sub: p.sub}
	p.sub, p.changes, p.bytes, p.flushed = p.sub+len(p.changes), nil, 0, true
	return p.w.take(e)
}

// messageReader reads the fields of a message of which left bytes are still to come.
type messageReader struct {
	in   *bufio.Reader
	left int64
}

// ReadByte is for varints.
func (m *messageReader) ReadByte() (byte, error) {
	if m.left == 0 {
		return 0, errEntry
	}
	m.left--
	b, err := m.in.ReadByte()
	return b, cut(err)
}

func (m *messageReader) uvarint() (uint64, error) { return binary.ReadUvarint(m) }

func (m *messageReader) tag() (protowire.Number, protowire.Type, error) {
	n, err := m.uvarint()
	if err != nil {
		return 0, 0, err
	}
	num, typ := protowire.DecodeTag(n)
	if !num.IsValid() {
		return 0, 0, errEntry
	}
	return num, typ, nil
}

// bytes reads n of them; memory for them is taken as they come.
func (m *messageReader) bytes(n int64) ([]byte, error) {
	if n > m.left {
		return nil, errEntry
	}
	m.left -= n
	if n <= maxPart {
		b := make([]byte, n)
		_, err := io.ReadFull(m.in, b)
		return b, cut(err)
	}
	b, err := io.ReadAll(io.LimitReader(m.in, n))
	if err == nil && int64(len(b)) < n {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

func (m *messageReader) discard(n int64) error {
	if n > m.left {
		return errEntry
	}
	m.left -= n
	_, err := io.CopyN(io.Discard, m.in, n)
	return cut(err)
}

// skip passes over the value of a field that isn't known.
func (m *messageReader) skip(typ protowire.Type) error {
	switch typ {
	case protowire.VarintType:
		_, err := m.uvarint()
		return err
	case protowire.Fixed32Type:
		return m.discard(4)
	case protowire.Fixed64Type:
		return m.discard(8)
	case protowire.BytesType:
		n, err := m.uvarint()
		if err != nil {
			return err
		}
		if n > uint64(m.left) {
			return errEntry
		}
		return m.discard(int64(n))
	}
	return errEntry
}
