package azure

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

// Permissions, as Azure's roles have them ("data actions"). A SAS token has letters for them: r, w or c, d, l.
const (
	dataAction  = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/"
	permRead    = dataAction + "read" // Of listing, too.
	permWrite   = dataAction + "write"
	permDelete  = dataAction + "delete"
	permVersion = dataAction + "deleteBlobVersion/action"
)

// Codes of errors.
// Source: https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes
const (
	codeExists       = "BlobAlreadyExists"
	codeNoContainer  = "ContainerNotFound"
	codeBlockList    = "InvalidBlockList"
	codeImmutable    = "BlobImmutableDueToPolicy"
	codeBadMD5       = "Md5Mismatch"
	codeAuth         = "AuthenticationFailed"
	codeNetwork      = "AuthorizationFailure"
	codeNoKeys       = "KeyBasedAuthenticationNotPermitted"
	codePermissions  = "AuthorizationPermissionMismatch"
	codeResourceType = "AuthorizationResourceTypeMismatch"
	codeService      = "AuthorizationServiceMismatch"
	codeProtocol     = "AuthorizationProtocolMismatch"
)

// explain reads the code in the header and the message in the body. An answer to HEAD has only the header.
func explain(header http.Header, body []byte) (code, message string) {
	var answer struct{ Code, Message string }
	_ = xml.Unmarshal(body, &answer) // what isn't XML explains nothing
	if code = header.Get("X-Ms-Error-Code"); code == "" {
		code = answer.Code
	}
	message, _, _ = strings.Cut(answer.Message, "\n") // then come the request's id and its time
	return code, message
}

// fail wraps what a request returned. action is the permission that the request needs.
func (s *Store) fail(ctx context.Context, op, action, key string, err error) error {
	return blob.Fail(ctx, op, s.name(key), err, func(e *blob.Error) { s.classify(e, action) })
}

func (s *Store) classify(e *blob.Error, action string) {
	rest.Classify(e, action)
	var se *rest.StatusError
	if !errors.As(e.Err, &se) {
		var dns *net.DNSError
		if errors.As(e.Err, &dns) && dns.IsNotFound {
			e.Err = fmt.Errorf("the storage account %q has no address; is there such an account? %w", s.account, e.Err)
		}
		return
	}
	switch {
	case se.Code == codeNoContainer:
		e.Kind = blob.ErrInvalid
		e.Err = fmt.Errorf("the container %q does not exist in the account %q: %w", s.container, s.account, e.Err)
	case se.Code == codeBadMD5:
		e.Kind = blob.ErrTransient
	case se.Status == http.StatusForbidden && !strings.HasPrefix(e.Action, "the right time"):
		if need := forbidden(se.Code); need != "" {
			e.Action = need
		}
	case se.Code == codeImmutable:
		e.Kind, e.Action = blob.ErrDenied,
			"blobs that may be replaced and deleted: the container has an immutability policy or a legal hold"
	case se.Status == http.StatusConflict:
		e.Kind = blob.ErrTransient // something else is under way with the blob or the container
		if se.Code == "BlobArchived" || se.Code == "BlobBeingRehydrated" {
			e.Kind, e.Err = blob.ErrInvalid, fmt.Errorf("the blob is in the archive tier; move it to another one: %w", e.Err)
		}
	case se.Status >= 300 && se.Status < 400:
		e.Kind = blob.ErrInvalid
	}
}

// forbidden is what is missing according to a code of an answer 403; empty if it is the permission.
func forbidden(code string) string {
	switch code {
	case codeAuth:
		return "valid credentials: the key or the SAS token is wrong or has ended"
	case codeNetwork:
		return "a network rule of the storage account that lets this machine in, or the permission"
	case codeNoKeys:
		return "a token of Entra ID: the account takes no keys"
	case codeResourceType:
		return "a SAS token for the resource types container and object (srt=co)"
	case codeService:
		return "a SAS token for the blob service (ss=b)"
	case codeProtocol:
		return "https: the SAS token permits nothing else"
	}
	return ""
}

func (s *Store) invalid(op, key string, err error) error {
	return &blob.Error{Op: op, Key: s.name(key), Kind: blob.ErrInvalid, Err: err}
}
