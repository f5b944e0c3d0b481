package client

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// User is one of etcd's users (auth enable), with a password. Without one, a client is who its certificate names.
type User struct {
	Name string
	// Password is asked for whenever etcd is, so that a new password is used without a restart.
	Password func() (string, error)
}

// options are those of a connection for this user.
func (u User) options() []grpc.DialOption {
	if u.Name == "" {
		return nil
	}
	return (&tokens{user: u}).options()
}

// tokens keeps the token that etcd gives for a password. etcd forgets tokens after minutes, and with a restart.
type tokens struct {
	user  User
	mu    sync.Mutex
	token string
}

// authenticateMethod is the request for a token, which needs none.
const authenticateMethod = "/etcdserverpb.Auth/Authenticate"

// errPassword: the password of a user can't be had, or is wrong.
var errPassword = errors.New("etcd doesn't take the password")

// options makes a connection show the token with each request.
func (t *tokens) options() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(t.unary), grpc.WithChainStreamInterceptor(t.stream)}
}

// unary shows the token, and gets another one if etcd doesn't know it.
func (t *tokens) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker,
	opts ...grpc.CallOption) error {
	if method == authenticateMethod {
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	t.mu.Lock()
	token := t.token
	t.mu.Unlock()
	err := invoke(shown(ctx, token), method, req, reply, cc, opts...)
	if !unknownToken(err) {
		return err
	}
	fresh, aerr := t.authenticate(ctx, cc)
	if aerr != nil {
		return aerr
	}
	return invoke(shown(ctx, fresh), method, req, reply, cc, opts...)
}

// stream begins with a new token, because a stream learns only from its first answer that etcd doesn't know the token.
func (t *tokens) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, begin grpc.Streamer,
	opts ...grpc.CallOption) (grpc.ClientStream, error) {
	token, err := t.authenticate(ctx, cc)
	if err != nil {
		return nil, err
	}
	return begin(shown(ctx, token), desc, cc, method, opts...)
}

// authenticate asks for a token. There is none, and none is needed, while etcd has no users.
func (t *tokens) authenticate(ctx context.Context, cc *grpc.ClientConn) (string, error) {
	password, err := t.user.Password()
	if err != nil {
		return "", fmt.Errorf("%w: %w", errPassword, err)
	}
	r, err := etcdserverpb.NewAuthClient(cc).Authenticate(ctx, &etcdserverpb.AuthenticateRequest{Name: t.user.Name, Password: password})
	token := r.GetToken()
	switch err = rpctypes.Error(err); {
	case errors.Is(err, rpctypes.ErrAuthNotEnabled):
		token = ""
	case errors.Is(err, rpctypes.ErrAuthFailed):
		return "", fmt.Errorf("%w: %w", errPassword, err)
	case err != nil:
		return "", err
	}
	t.mu.Lock()
	t.token = token
	t.mu.Unlock()
	return token, nil
}

// shown is a request's context with the token.
func shown(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token)
}

// unknownToken tells whether another token may help.
func unknownToken(err error) bool {
	if err == nil {
		return false
	}
	err = rpctypes.Error(err)
	return errors.Is(err, rpctypes.ErrUserEmpty) || errors.Is(err, rpctypes.ErrInvalidAuthToken) || errors.Is(err, rpctypes.ErrAuthOldRevision)
}
