package gcs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

// Permissions, which are also the names of the operations.
const (
	permCreate = "storage.objects.create"
	permGet    = "storage.objects.get"
	permList   = "storage.objects.list"
	permDelete = "storage.objects.delete"
)

// Reasons that the API gives for an error.
// Source: https://cloud.google.com/storage/docs/json_api/v1/status-codes
const (
	reasonRetention = "retentionPolicyNotMet"
	reasonHold      = "objectUnderActiveHold"
)

// explain reads the JSON of an error. A download's error is plain text.
func explain(_ http.Header, body []byte) (code, message string) {
	var answer struct {
		Error struct {
			Message string
			Errors  []struct{ Reason, Message string }
		}
	}
	if json.Unmarshal(body, &answer) != nil {
		return "", strings.TrimSpace(string(body[:min(len(body), 300)]))
	}
	if len(answer.Error.Errors) > 0 {
		code = answer.Error.Errors[0].Reason
	}
	return code, answer.Error.Message
}

// fail wraps what a request returned. action is the permission that the request needs.
func (s *Store) fail(ctx context.Context, op, action, key string, err error) error {
	return blob.Fail(ctx, op, s.name(key), err, func(e *blob.Error) { s.classify(e, action) })
}

// deniedPattern finds the permission in messages such as "… does not have storage.objects.get access to the Google Cloud Storage object".
var deniedPattern = regexp.MustCompile(`\b(storage\.[a-zA-Z]+\.[a-zA-Z]+|cloudkms\.[a-zA-Z.]+)\b`)

func (s *Store) classify(e *blob.Error, action string) {
	rest.Classify(e, action)
	var se *rest.StatusError
	if !errors.As(e.Err, &se) {
		return
	}
	switch {
	case missingBucket(se):
		e.Kind = blob.ErrInvalid
		e.Err = fmt.Errorf("the bucket %q does not exist: %w", s.bucket, e.Err)
	case se.Status == http.StatusForbidden:
		s.classifyForbidden(e, se)
	case se.Status == http.StatusConflict, se.Status == http.StatusGone, se.Status == statusClosed:
		e.Kind = blob.ErrTransient // the outcome is open, or an upload's session has ended early
	case se.Status >= 300 && se.Status < 400:
		e.Kind = blob.ErrInvalid
	}
}

// statusClosed is the API's answer for an upload that was given up.
const statusClosed = 499

func (s *Store) classifyForbidden(e *blob.Error, se *rest.StatusError) {
	switch se.Code {
	case "rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded":
		e.Kind, e.Action = blob.ErrTransient, ""
		return
	case reasonRetention, reasonHold:
		e.Action = "objects that may be replaced and deleted: the bucket has a retention policy, or the object has a hold"
		return
	}
	if strings.Contains(se.Header.Get("Www-Authenticate"), "insufficient_scope") || se.Code == "insufficientPermissions" {
		e.Action = "the scope " + scope + ", which this machine's credentials don't have"
		return
	}
	if m := deniedPattern.FindString(se.Message); m != "" {
		e.Action = m
	}
}

// missingBucket tells by the message whether it is the bucket that isn't there, and not the object.
func missingBucket(se *rest.StatusError) bool {
	return se.Status == http.StatusNotFound && strings.Contains(se.Message, "bucket does not exist")
}

// absent makes sure that what was answered by 404 is an object: without a bucket nothing can be said of objects.
func (s *Store) absent(ctx context.Context, op, key string, err error) error {
	var se *rest.StatusError
	if errors.As(err, &se) && !missingBucket(se) && !strings.HasPrefix(se.Message, "No such object") {
		if _, lerr := s.page(ctx, listing{prefix: s.prefix + key, max: 1}); rest.Status(lerr) == http.StatusNotFound {
			return &blob.Error{Op: op, Key: s.name(key), Kind: blob.ErrInvalid,
				Err: fmt.Errorf("the bucket %q does not exist: %w", s.bucket, lerr)}
		}
	}
	return s.fail(ctx, op, permGet, key, err)
}

func (s *Store) invalid(op, key string, err error) error {
	return &blob.Error{Op: op, Key: s.name(key), Kind: blob.ErrInvalid, Err: err}
}
