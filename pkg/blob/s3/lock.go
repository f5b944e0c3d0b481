package s3

import (
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// lockQuestions bounds how many objects are asked for their lock in one Purge, for each reason that the store gives.
const lockQuestions = 3

// locked finds out whether objects that could not be deleted are under a lock; nil if not, or if that can't be found out. Servers say in
// different words that it is so, and AWS says no more than that access is denied: so a few are asked, the first and the last of them.
func (p *purger) locked(g *failureGroup) *blob.LockedError {
	if g.kind != nil && !errors.Is(g.kind, blob.ErrDenied) {
		return nil
	}
	found := &blob.LockedError{}
	any := false
	for _, o := range sample(g.objects, lockQuestions) {
		until, hold := p.lockOf(o)
		if until.IsZero() && !hold {
			continue
		}
		any = true
		found.LegalHold = found.LegalHold || hold
		if !until.IsZero() && (found.Until.IsZero() || until.Before(found.Until)) {
			found.Until = until
		}
	}
	if !any {
		return nil
	}
	for _, o := range g.objects {
		if p.hidden[aws.ToString(o.Key)] {
			continue
		}
		found.Keys = append(found.Keys, strings.TrimPrefix(aws.ToString(o.Key), p.s.prefix))
	}
	slices.Sort(found.Keys)
	found.Keys = slices.Compact(found.Keys)
	return found
}

// sample takes the first, the last and what lies between, evenly.
func sample(objects []types.ObjectIdentifier, n int) []types.ObjectIdentifier {
	if len(objects) <= n {
		return objects
	}
	out := make([]types.ObjectIdentifier, 0, n)
	for i := range n {
		out = append(out, objects[i*(len(objects)-1)/(n-1)])
	}
	return out
}

// lockOf asks one version for its lock. Zero and false if it has none, or the server doesn't say.
func (p *purger) lockOf(o types.ObjectIdentifier) (until time.Time, legalHold bool) {
	in := &awss3.HeadObjectInput{Bucket: &p.s.bucket, Key: o.Key}
	if v := aws.ToString(o.VersionId); v != "" {
		in.VersionId = &v
	}
	out, err := call(p.ctx, p.s, (*awss3.Client).HeadObject, in)
	if err != nil {
		return time.Time{}, false // then the refusal stands for itself
	}
	if t := aws.ToTime(out.ObjectLockRetainUntilDate); out.ObjectLockMode != "" && t.After(time.Now()) {
		until = t
	}
	return until, out.ObjectLockLegalHoldStatus == types.ObjectLockLegalHoldStatusOn
}
