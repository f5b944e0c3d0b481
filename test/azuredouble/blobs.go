package azuredouble

import (
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// holds checks the condition of a request against what readers see. A false one for a blob that must not exist is a conflict.
func (d *Double) holds(w http.ResponseWriter, r *http.Request, name string) bool {
	var current *version
	if b := d.blobs[name]; b != nil {
		current = b.current
	}
	if r.Header.Get("If-None-Match") == "*" && current != nil {
		fail(w, http.StatusConflict, "BlobAlreadyExists", "The specified blob already exists.")
		return false
	}
	if want := r.Header.Get("If-Match"); want != "" && (current == nil || want != `"`+current.etag+`"`) {
		fail(w, http.StatusPreconditionFailed, "ConditionNotMet", "The condition specified using HTTP conditional header(s) is not met.")
		return false
	}
	if _, ok := d.protected[name]; ok && current != nil && r.Method != http.MethodGet {
		fail(w, http.StatusConflict, "BlobImmutableDueToPolicy",
			"This operation is not permitted as the blob is immutable due to a policy.")
		return false
	}
	return true
}

func (d *Double) blob(name string) *blob {
	b := d.blobs[name]
	if b == nil {
		b = &blob{blocks: map[string][]byte{}}
		d.blobs[name] = b
	}
	return b
}

// store makes data what readers see. Blocks that are in no list are gone with that.
func (d *Double) store(w http.ResponseWriter, r *http.Request, name string, data []byte, sum string) *version {
	b := d.blob(name)
	if b.current != nil && d.versioned {
		b.old = append(b.old, b.current)
	}
	d.etag++
	now := time.Now().UTC()
	v := &version{etag: fmt.Sprintf("0x8D%013X", d.etag), data: data, md5: sum,
		modified: now.Truncate(time.Second), meta: map[string]string{}}
	if d.versioned {
		v.id = now.Format("2006-01-02T15:04:05.0000000Z") + strconv.FormatInt(d.etag, 10)
		w.Header().Set("X-Ms-Version-Id", v.id)
	}
	for header, values := range r.Header {
		if strings.HasPrefix(header, "X-Ms-Meta-") {
			v.meta[header] = values[0]
		}
	}
	b.current = v
	clear(b.blocks)
	w.Header().Set("Etag", `"`+v.etag+`"`)
	w.Header().Set("Last-Modified", v.modified.Format(http.TimeFormat))
	return v
}

func (d *Double) put(w http.ResponseWriter, r *http.Request, name string, body []byte) {
	if r.Header.Get("X-Ms-Blob-Type") != "BlockBlob" {
		fail(w, http.StatusBadRequest, "MissingRequiredHeader", "x-ms-blob-type")
		return
	}
	if !d.holds(w, r, name) {
		return
	}
	v := d.store(w, r, name, body, checksum(body))
	w.Header().Set("Content-Md5", v.md5)
	w.WriteHeader(http.StatusCreated)
}

func (d *Double) putBlock(w http.ResponseWriter, r *http.Request, name string, body []byte) {
	id := r.URL.Query().Get("blockid")
	b := d.blob(name)
	for other := range b.blocks {
		if len(other) != len(id) {
			fail(w, http.StatusBadRequest, "InvalidBlobOrBlock", "The specified blob or block content is invalid.")
			return
		}
	}
	if id == "" || len(body) == 0 {
		fail(w, http.StatusBadRequest, "InvalidQueryParameterValue", "blockid")
		return
	}
	b.blocks[id] = body
	w.Header().Set("Content-Md5", checksum(body))
	w.WriteHeader(http.StatusCreated)
}

func (d *Double) putBlockList(w http.ResponseWriter, r *http.Request, name string, body []byte) {
	var list struct {
		Uncommitted []string
		Latest      []string
		Committed   []string
	}
	if err := xml.Unmarshal(body, &list); err != nil || len(list.Latest)+len(list.Committed) > 0 {
		fail(w, http.StatusBadRequest, "InvalidXmlDocument", "The double knows uncommitted blocks only.")
		return
	}
	if !d.holds(w, r, name) {
		return
	}
	b := d.blob(name)
	var data []byte
	for _, id := range list.Uncommitted {
		block, ok := b.blocks[id]
		if !ok {
			fail(w, http.StatusBadRequest, "InvalidBlockList", "The specified block list is invalid.")
			return
		}
		data = append(data, block...)
	}
	// The checksum of the whole is kept as it is sent, and not compared.
	d.store(w, r, name, data, r.Header.Get("X-Ms-Blob-Content-Md5"))
	w.WriteHeader(http.StatusCreated)
}

// get returns the bytes that are to follow the header.
func (d *Double) get(w http.ResponseWriter, r *http.Request, name string) []byte {
	b := d.blobs[name]
	if b == nil || b.current == nil {
		fail(w, http.StatusNotFound, "BlobNotFound", "The specified blob does not exist.")
		return nil
	}
	v := b.current
	h := w.Header()
	h.Set("Etag", `"`+v.etag+`"`)
	h.Set("Last-Modified", v.modified.Format(http.TimeFormat))
	h.Set("Content-Type", "application/octet-stream")
	for name, value := range v.meta {
		h.Set(name, value)
	}
	if until, ok := d.protected[name]; ok {
		h.Set("X-Ms-Immutability-Policy-Until-Date", until.UTC().Format(http.TimeFormat))
	}
	data, status := v.data, http.StatusOK
	if span, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		first, last, _ := strings.Cut(span, "-")
		from, err := strconv.ParseInt(first, 10, 64)
		if err != nil || from >= int64(len(data)) {
			fail(w, http.StatusRequestedRangeNotSatisfiable, "InvalidRange",
				"The range specified is invalid for the current size of the resource.")
			return nil
		}
		to := int64(len(data)) - 1
		if n, err := strconv.ParseInt(last, 10, 64); err == nil {
			to = min(n, to)
		}
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(data)))
		h.Set("X-Ms-Blob-Content-Md5", v.md5)
		data, status = data[from:to+1], http.StatusPartialContent
	} else if v.md5 != "" {
		h.Set("Content-Md5", v.md5)
	}
	h.Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(status)
	if r.Method == http.MethodHead {
		return nil
	}
	return data
}

func (d *Double) delete(w http.ResponseWriter, r *http.Request, name string) {
	b := d.blobs[name]
	id := r.URL.Query().Get("versionid")
	switch {
	case b == nil || id == "" && b.current == nil:
		fail(w, http.StatusNotFound, "BlobNotFound", "The specified blob does not exist.")
		return
	case id != "" && b.current != nil && b.current.id == id:
		fail(w, http.StatusForbidden, "OperationNotAllowedOnRootBlob", "The operation is not allowed on the root blob.")
		return
	case id != "":
		i := slices.IndexFunc(b.old, func(v *version) bool { return v.id == id })
		if i < 0 {
			fail(w, http.StatusNotFound, "BlobNotFound", "The specified blob does not exist.")
			return
		}
		b.old = slices.Delete(b.old, i, i+1)
	default:
		if !d.holds(w, r, name) {
			return
		}
		if d.versioned {
			b.old = append(b.old, b.current)
		}
		b.current = nil
	}
	if b.current == nil && len(b.old) == 0 && len(b.blocks) == 0 {
		delete(d.blobs, name)
	}
	w.WriteHeader(http.StatusAccepted)
}

// row is one row of a listing.
type row struct {
	name   string
	prefix bool
	v      *version
	old    bool
}

// rows are all rows behind the marker, in order.
func (d *Double) rows(prefix, delimiter, after string, versions bool) []row {
	var rows []row
	seen := map[string]bool{}
	for name, b := range d.blobs {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		if i := strings.Index(name[len(prefix):], delimiter); delimiter != "" && i >= 0 {
			folded := name[:len(prefix)+i+1]
			if b.current != nil && !seen[folded] && folded > after {
				seen[folded] = true
				rows = append(rows, row{name: folded, prefix: true})
			}
			continue
		}
		if name <= after {
			continue
		}
		if versions {
			for _, v := range b.old {
				rows = append(rows, row{name: name, v: v, old: true})
			}
		}
		if b.current != nil {
			rows = append(rows, row{name: name, v: b.current})
		}
	}
	slices.SortStableFunc(rows, func(a, b row) int { return strings.Compare(a.name, b.name) })
	return rows
}

// list answers with one page. A marker is opaque to clients; versions of one blob stay on one page, which is simpler than Azure.
func (d *Double) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	most, err := strconv.Atoi(q.Get("maxresults"))
	if err != nil || most <= 0 || most > 5000 {
		fail(w, http.StatusBadRequest, "OutOfRangeQueryParameterValue", "maxresults")
		return
	}
	after := ""
	if m := q.Get("marker"); m != "" {
		var ok bool
		if after, ok = strings.CutPrefix(m, "2!marker!"); !ok {
			fail(w, http.StatusBadRequest, "OutOfRangeInput", "marker")
			return
		}
	}
	versions := q.Get("include") == "versions"
	rows := d.rows(q.Get("prefix"), q.Get("delimiter"), after, versions)
	next := ""
	if len(rows) > most {
		for most < len(rows) && rows[most].name == rows[most-1].name {
			most++
		}
		if most < len(rows) {
			next = "2!marker!" + rows[most-1].name
		}
		rows = rows[:most]
	}
	w.Header().Set("Content-Type", "application/xml")
	fmt.Fprint(w, "\ufeff"+`<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>`)
	for _, row := range rows {
		fmt.Fprint(w, row.xml(versions))
	}
	fmt.Fprintf(w, "</Blobs><NextMarker>%s</NextMarker></EnumerationResults>", escape(next))
}

func escape(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		return ""
	}
	return b.String()
}

func (r row) xml(versions bool) string {
	if r.prefix {
		return "<BlobPrefix><Name>" + escape(r.name) + "</Name></BlobPrefix>"
	}
	version := ""
	if versions && r.v.id != "" {
		version = "<VersionId>" + r.v.id + "</VersionId>"
		if !r.old {
			version += "<IsCurrentVersion>true</IsCurrentVersion>"
		}
	}
	return fmt.Sprintf("<Blob><Name>%s</Name>%s<Properties><Last-Modified>%s</Last-Modified><Etag>%s</Etag>"+
		"<Content-Length>%d</Content-Length>"+
		"<BlobType>BlockBlob</BlobType></Properties></Blob>", escape(r.name), version,
		r.v.modified.Format(http.TimeFormat), r.v.etag, len(r.v.data))
}
