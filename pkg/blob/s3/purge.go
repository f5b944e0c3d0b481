package s3

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

const (
	// deleteBatch is the number of versions that one DeleteObjects takes.
	deleteBatch = 1000
	// maxPending bounds the versions that are remembered before they are deleted.
	maxPending = 20 * deleteBatch
)

// Purge implements blob.Store. It lists once, with all versions and delete markers, and deletes a thousand of them with a request.
// Where the server can't list versions or the permission is missing it deletes the newest ones only; if it then turns out
// that the bucket keeps versions, that is an ErrDenied.
func (s *Store) Purge(ctx context.Context, prefix string, match func(key string) bool) (int, error) {
	if err := blob.CheckPrefix(prefix); err != nil {
		return 0, s.invalid("purge", prefix, err)
	}
	p := &purger{s: s, ctx: ctx, prefix: prefix, match: match, gone: map[string]bool{}, failed: map[string]bool{},
		hidden: map[string]bool{}}
	err := p.versions()
	if p.unlisted = unlistable(err); p.unlisted {
		err = p.objects()
	}
	if err == nil {
		err = p.flush("")
	}
	if err != nil {
		p.errs = append(p.errs, err)
	}
	n := 0
	for key := range p.gone {
		if !p.failed[key] {
			n++
		}
	}
	return n, errors.Join(append(p.errs, p.failures()...)...)
}

// unlistable reports whether the server refuses or lacks the listing of versions.
func unlistable(err error) bool {
	status, _ := response(err)
	return status == http.StatusForbidden && code(err) != "InvalidAccessKeyId" &&
		code(err) != "SignatureDoesNotMatch" || status == http.StatusNotImplemented || status == http.StatusMethodNotAllowed
}

// purger is one run of Purge.
type purger struct {
	s       *Store
	ctx     context.Context
	prefix  string
	match   func(string) bool
	pending []types.ObjectIdentifier
	// markers are delete markers. One is only deleted once all versions of its key are gone: what it hides must never show again.
	markers []types.ObjectIdentifier
	// hidden are the keys whose newest version is a delete marker.
	hidden map[string]bool
	// unlisted is set if versions could not be listed.
	unlisted bool
	// kept is set if a delete left versions behind.
	kept         bool
	lastKey      string
	lastMatch    bool
	gone, failed map[string]bool
	groups       []*failureGroup
	errs         []error
}

// failureGroup counts the failures for one reason.
type failureGroup struct {
	kind         error
	code, action string
	key, message string
	count        int
	// objects are what was refused.
	objects []types.ObjectIdentifier
}

// keys are the objects that were refused, each once.
func (g *failureGroup) keys(prefix string) []string {
	keys := make([]string, 0, len(g.objects))
	for _, o := range g.objects {
		keys = append(keys, strings.TrimPrefix(aws.ToString(o.Key), prefix))
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

func (p *purger) versions() error {
	in := &awss3.ListObjectVersionsInput{Bucket: &p.s.bucket, Prefix: p.s.key(p.prefix)}
	for {
		page, err := call(p.ctx, p.s, (*awss3.Client).ListObjectVersions, in)
		if unlistable(err) {
			return err
		}
		if err != nil {
			return p.s.fail(p.ctx, "purge", actionListVersions, p.prefix, err)
		}
		for _, v := range page.Versions {
			p.add(v.Key, v.VersionId, &p.pending)
		}
		for _, m := range page.DeleteMarkers {
			p.add(m.Key, m.VersionId, &p.markers)
			if p.lastMatch && aws.ToBool(m.IsLatest) {
				p.hidden[aws.ToString(m.Key)] = true
			}
		}
		if !aws.ToBool(page.IsTruncated) {
			return nil
		}
		key, version := aws.ToString(page.NextKeyMarker), aws.ToString(page.NextVersionIdMarker)
		if key == "" || key == aws.ToString(in.KeyMarker) && version == aws.ToString(in.VersionIdMarker) {
			return p.s.fail(p.ctx, "purge", actionListVersions, p.prefix, errors.New("the server says that there is more, but not where"))
		}
		in.KeyMarker, in.VersionIdMarker = page.NextKeyMarker, page.NextVersionIdMarker
		if len(p.pending)+len(p.markers) >= maxPending {
			if err := p.flush(key); err != nil {
				return err
			}
		}
	}
}

func (p *purger) objects() error {
	in := &awss3.ListObjectsV2Input{Bucket: &p.s.bucket, Prefix: p.s.key(p.prefix)}
	for {
		page, err := call(p.ctx, p.s, (*awss3.Client).ListObjectsV2, in)
		if err != nil {
			return p.s.fail(p.ctx, "purge", actionList, p.prefix, err)
		}
		for _, o := range page.Contents {
			p.add(o.Key, nil, &p.pending)
		}
		if !aws.ToBool(page.IsTruncated) {
			return nil
		}
		if next := aws.ToString(page.NextContinuationToken); next == "" || next == aws.ToString(in.ContinuationToken) {
			return p.s.fail(p.ctx, "purge", actionList, p.prefix, errors.New("the server says that there is more, but not where"))
		}
		in.ContinuationToken = page.NextContinuationToken
		if len(p.pending)+len(p.markers) >= maxPending {
			if err := p.flush(""); err != nil {
				return err
			}
		}
	}
}

// add remembers a version if its key matches; match is asked once for a key, whose versions come together.
func (p *purger) add(full, version *string, to *[]types.ObjectIdentifier) {
	key := strings.TrimPrefix(aws.ToString(full), p.s.prefix)
	if key == "" {
		return
	}
	if key != p.lastKey {
		p.lastKey, p.lastMatch = key, p.match(key)
	}
	if p.lastMatch {
		if aws.ToString(version) == "" {
			version = nil
		}
		*to = append(*to, types.ObjectIdentifier{Key: full, VersionId: version})
	}
}

// flush deletes what is pending. It goes on after versions that can't be deleted, but not after a request that fails as a whole.
// Of the key open, in full, more versions may follow, so its marker waits.
func (p *purger) flush(open string) error {
	err := p.deleteAll(p.pending)
	p.pending = nil
	if err != nil {
		return err
	}
	var ready, wait []types.ObjectIdentifier
	for _, m := range p.markers {
		switch key := aws.ToString(m.Key); {
		case p.failed[key]:
		case key == open:
			wait = append(wait, m)
		default:
			ready = append(ready, m)
		}
	}
	p.markers = wait
	return p.deleteAll(ready)
}

func (p *purger) deleteAll(objects []types.ObjectIdentifier) error {
	for batch := range slices.Chunk(objects, deleteBatch) {
		retry, err := p.delete(batch, true)
		if err == nil && len(retry) > 0 {
			_, err = p.delete(retry, false)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// delete sends one DeleteObjects. What was denied under the version "null", which is how a bucket that never
// kept versions names them, is returned if bare is true: without the version it needs a lesser permission.
func (p *purger) delete(batch []types.ObjectIdentifier, bare bool) (retry []types.ObjectIdentifier, err error) {
	in := &awss3.DeleteObjectsInput{Bucket: &p.s.bucket, Delete: &types.Delete{Objects: batch, Quiet: aws.Bool(false)}}
	var opts []func(*awss3.Options)
	if p.s.custom {
		opts = append(opts, awss3.WithAPIOptions(addContentMD5))
	}
	out, err := call(p.ctx, p.s, (*awss3.Client).DeleteObjects, in, opts...)
	if err != nil {
		return nil, p.s.fail(p.ctx, "purge", actionDelete, p.prefix, err)
	}
	for _, o := range batch {
		p.gone[aws.ToString(o.Key)] = true
	}
	for _, d := range out.Deleted {
		if aws.ToBool(d.DeleteMarker) && aws.ToString(d.VersionId) == "" {
			p.kept = true
		}
	}
	for _, e := range out.Errors {
		c := aws.ToString(e.Code)
		switch {
		case c == "NoSuchKey" || c == "NoSuchVersion":
		case c == "AccessDenied" && bare && aws.ToString(e.VersionId) == "null":
			retry = append(retry, types.ObjectIdentifier{Key: e.Key})
		default:
			p.fail(e)
		}
	}
	return retry, nil
}

func (p *purger) fail(e types.Error) {
	key, c := aws.ToString(e.Key), aws.ToString(e.Code)
	p.failed[key] = true
	for _, g := range p.groups {
		if g.code == c {
			g.count++
			g.objects = append(g.objects, types.ObjectIdentifier{Key: e.Key, VersionId: e.VersionId})
			return
		}
	}
	g := &failureGroup{code: c, key: strings.TrimPrefix(key, p.s.prefix), message: aws.ToString(e.Message), count: 1,
		objects: []types.ObjectIdentifier{{Key: e.Key, VersionId: e.VersionId}}}
	switch {
	case c == "AccessDenied":
		g.kind, g.action = blob.ErrDenied, actionDelete
		if aws.ToString(e.VersionId) != "" {
			g.action = actionDeleteVersion
		}
		if m := deniedPattern.FindStringSubmatch(g.message); m != nil {
			g.action = m[1] + m[2]
		}
	case transientCode(c):
		g.kind = blob.ErrTransient
	}
	p.groups = append(p.groups, g)
}

// failures returns one error for each reason, and one if old versions had to stay.
func (p *purger) failures() []error {
	var errs []error
	for _, g := range p.groups {
		if locked := p.locked(g); locked != nil {
			if len(locked.Keys) == 0 {
				continue // all are hidden, so for whoever reads they are gone
			}
			errs = append(errs, &blob.Error{Op: "purge", Key: p.s.name(g.key), Kind: blob.ErrLocked, Err: locked})
			continue
		}
		cause := fmt.Errorf("%s: %s", g.code, g.message)
		if g.count > 1 {
			cause = fmt.Errorf("%w (and %d more)", cause, g.count-1)
		}
		errs = append(errs, &blob.Error{Op: "purge", Key: p.s.name(g.key), Kind: g.kind, Action: g.action,
			Keys: g.keys(p.s.prefix), Err: cause})
	}
	if p.kept {
		action := actionDeleteVersion
		if p.unlisted {
			action = actionListVersions + " and " + actionDeleteVersion
		}
		errs = append(errs, &blob.Error{Op: "purge", Key: p.s.name(p.prefix), Kind: blob.ErrDenied, Action: action,
			Err: errors.New("the bucket keeps versions, and those of deleted objects stay")})
	}
	return errs
}

// addContentMD5: servers from before 2024 want this header with DeleteObjects and know no other checksum.
func addContentMD5(stack *middleware.Stack) error {
	return stack.Build.Add(middleware.BuildMiddlewareFunc("ContentMD5",
		func(ctx context.Context, in middleware.BuildInput, next middleware.BuildHandler) (middleware.BuildOutput,
			middleware.Metadata, error) {
			req, ok := in.Request.(*smithyhttp.Request)
			if ok && req.GetStream() != nil {
				body, err := io.ReadAll(req.GetStream())
				if err != nil {
					return middleware.BuildOutput{}, middleware.Metadata{}, fmt.Errorf("hash request: %w", err)
				}
				if err := req.RewindStream(); err != nil {
					return middleware.BuildOutput{}, middleware.Metadata{}, fmt.Errorf("hash request: %w", err)
				}
				sum := md5.Sum(body)
				req.Header.Set("Content-Md5", base64.StdEncoding.EncodeToString(sum[:]))
			}
			return next.HandleBuild(ctx, in)
		}), middleware.After)
}
