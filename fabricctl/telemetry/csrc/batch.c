/* fabricctl.telemetry._batch: reads samples while the agent waits. A process that wakes 100 times a
 * second finds its caches cold, and walking Python's objects for each read costs more than the
 * reads. What it takes and gives is typed in fabricctl/telemetry/_batch.pyi. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S INT64_C(1000000000)

enum {
	MAX_REQUEST = 128,
	MAX_TOGETHER = 32,
	MAX_READING = 4096,
	MAX_EVENTS = 16,
	EARLY_NS = 2000000,
	MAX_KEPT = 4 << 20, /* bytes a slot; at 100 Hz more than 10 s */
};

struct reading {
	int64_t time_mono_ns;
	int64_t result; /* bytes that follow, or -errno */
};

struct slot {
	int fd; /* -1: idle */
	unsigned int limit; /* of a reading */
	unsigned int every, left; /* one sample of so many; samples until the next */
	unsigned int request_bytes; /* 0: a file, read from its beginning */
	unsigned char request[MAX_REQUEST];
	char *kept;
	size_t used, room;
};

struct batch {
	PyObject_HEAD
	struct slot *slot;
	Py_ssize_t slots;
	int64_t due_ns; /* of the next sample; 0: at once */
	long long samples, missed; /* since wait() told */
};

static int64_t mono_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static bool make_room(struct slot *slot)
{
	size_t need = slot->used + sizeof(struct reading) + slot->limit, room = slot->room;
	char *grown;

	if (need <= room)
		return true;
	if (need > MAX_KEPT)
		return false;
	while (room < need)
		room = room ? 2 * room : 4096;
	grown = PyMem_RawRealloc(slot->kept, room);
	if (!grown)
		return false;
	slot->kept = grown;
	slot->room = room;
	return true;
}

/* The requests of slots that follow each other on one socket go out together: netlink answers each
 * message of a datagram by its own. 0, or the errno for all of them. */
static int ask(const struct slot *slot, Py_ssize_t slots)
{
	struct iovec part[MAX_TOGETHER];
	struct msghdr message = { .msg_iov = part, .msg_iovlen = (size_t)slots };

	for (Py_ssize_t i = 0; i < slots; i++)
		part[i] = (struct iovec){ (void *)slot[i].request, slot[i].request_bytes };
	return sendmsg(slot->fd, &message, 0) < 0 ? errno : 0;
}

static void read_slot(struct slot *slot, int error)
{
	struct reading reading;
	char *data;
	ssize_t got = -1;

	if (!make_room(slot)) {
		if (slot->request_bytes && !error) /* else the next sample would take this answer */
			recv(slot->fd, &reading, sizeof(reading), 0);
		return;
	}
	data = slot->kept + slot->used + sizeof(reading);
	if (!slot->request_bytes)
		got = pread(slot->fd, data, slot->limit, 0);
	else if (!error)
		got = recv(slot->fd, data, slot->limit, 0);
	reading.result = got >= 0 ? got : error ? -error : -errno;
	reading.time_mono_ns = mono_ns();
	memcpy(slot->kept + slot->used, &reading, sizeof(reading));
	slot->used += sizeof(reading) + (got > 0 ? (size_t)got : 0);
}

/* From `first` on: how many are to be asked together. */
static Py_ssize_t together(const struct batch *self, Py_ssize_t first)
{
	const struct slot *slot = self->slot;
	Py_ssize_t end = first;

	while (end < self->slots && end - first < MAX_TOGETHER && slot[end].request_bytes &&
	       slot[end].fd == slot[first].fd)
		end++;
	return end - first;
}

static void read_slots(struct batch *self)
{
	Py_ssize_t asked = 0; /* slots up to here, from the last time */
	int error = 0;

	for (Py_ssize_t i = 0; i < self->slots; i++) {
		if (self->slot[i].fd < 0 || self->slot[i].left--)
			continue;
		self->slot[i].left = self->slot[i].every - 1;
		if (i >= asked && self->slot[i].request_bytes) {
			asked = i + together(self, i);
			error = ask(&self->slot[i], asked - i);
		}
		read_slot(&self->slot[i], self->slot[i].request_bytes ? error : 0);
	}
}

static PyObject *take(struct batch *self, PyObject *Py_UNUSED(none))
{
	read_slots(self);
	Py_RETURN_NONE;
}

static void sample(struct batch *self, int64_t period_ns, int64_t now_ns)
{
	int64_t passed = self->due_ns ? (now_ns - self->due_ns) / period_ns : 0;

	self->due_ns = (self->due_ns ? self->due_ns : now_ns) + (passed + 1) * period_ns;
	self->samples++;
	self->missed += passed;
	read_slots(self);
}

/* ppoll(2) and no timerfd(2), which takes a read more and arms a second timer for each sample. */
static int poll_until(int epoll, int64_t end_ns)
{
	struct pollfd events = { .fd = epoll, .events = POLLIN };
	int64_t left_ns = end_ns - mono_ns();
	struct timespec left = { 0 };

	if (left_ns > 0)
		left = (struct timespec){ left_ns / NS_PER_S, left_ns % NS_PER_S };
	return ppoll(&events, 1, &left, NULL);
}

/* Samples whenever one is due, until something is ready or the time is over: the number of events,
 * or -1. */
static int wait_until(struct batch *self, int epoll, int64_t period_ns, int64_t end_ns,
		      struct epoll_event *events)
{
	int64_t now_ns = mono_ns();
	bool done = false;
	int ready = 0;

	while (!ready && !done) {
		bool nearly = false;

		if (now_ns >= self->due_ns) {
			sample(self, period_ns, now_ns);
			/* Another wake-up would cost more than what is nearly due, done now. */
			nearly = mono_ns() >= end_ns - EARLY_NS;
		}
		ready = poll_until(epoll, nearly ? 0 : self->due_ns < end_ns ? self->due_ns : end_ns);
		now_ns = mono_ns();
		done = nearly || now_ns >= end_ns;
	}
	if (ready > 0)
		ready = epoll_wait(epoll, events, MAX_EVENTS, 0);
	return ready < 0 && errno == EINTR ? 0 : ready;
}

static PyObject *wait_for(struct batch *self, PyObject *args)
{
	struct epoll_event events[MAX_EVENTS];
	PyObject *list, *result;
	int64_t end_ns;
	long long period_ns;
	double timeout_s;
	int epoll, others;

	if (!PyArg_ParseTuple(args, "iLd", &epoll, &period_ns, &timeout_s))
		return NULL;
	if (period_ns <= 0) {
		PyErr_SetString(PyExc_ValueError, "a period is above 0 ns");
		return NULL;
	}
	end_ns = mono_ns() + (int64_t)((timeout_s < 60 ? timeout_s : 60) * NS_PER_S);
	Py_BEGIN_ALLOW_THREADS
	others = wait_until(self, epoll, period_ns, end_ns, events);
	Py_END_ALLOW_THREADS
	if (others < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	list = PyErr_CheckSignals() < 0 ? NULL : PyList_New(others);
	for (int i = 0; list && i < others; i++)
		PyList_SET_ITEM(list, i, PyLong_FromLong(events[i].data.fd));
	if (!list)
		return NULL;
	result = Py_BuildValue("NLL", list, self->samples, self->missed);
	self->samples = self->missed = 0;
	return result;
}

static PyObject *add(struct batch *self, PyObject *Py_UNUSED(none))
{
	struct slot *grown = PyMem_RawRealloc(self->slot, (self->slots + 1) * sizeof(*grown));

	if (!grown)
		return PyErr_NoMemory();
	self->slot = grown;
	grown[self->slots] = (struct slot){ .fd = -1 };
	return PyLong_FromSsize_t(self->slots++);
}

static struct slot *slot_at(struct batch *self, Py_ssize_t number)
{
	if (number >= 0 && number < self->slots)
		return &self->slot[number];
	PyErr_Format(PyExc_IndexError, "no slot %zd", number);
	return NULL;
}

static PyObject *set(struct batch *self, PyObject *args)
{
	const char *request = NULL;
	Py_ssize_t number, request_bytes = 0;
	unsigned int limit = 0, every = 1;
	struct slot *slot;
	int fd;

	if (!PyArg_ParseTuple(args, "ni|Iy#I", &number, &fd, &limit, &request, &request_bytes, &every))
		return NULL;
	slot = slot_at(self, number);
	if (!slot)
		return NULL;
	if (limit > MAX_READING || request_bytes > MAX_REQUEST) {
		PyErr_SetString(PyExc_ValueError, "a reading has at most 4096 bytes, a request 128");
		return NULL;
	}
	if (!every || (request_bytes && every > 1)) {
		PyErr_SetString(PyExc_ValueError, "every: 1 or more, and 1 with a request");
		return NULL;
	}
	slot->fd = fd;
	slot->limit = limit;
	slot->every = every;
	slot->left = 0;
	slot->request_bytes = (unsigned int)request_bytes;
	if (request_bytes)
		memcpy(slot->request, request, (size_t)request_bytes);
	Py_RETURN_NONE;
}

static PyObject *item_of(const struct reading *reading, const char *data)
{
	long long time = reading->time_mono_ns;

	if (reading->result < 0)
		return Py_BuildValue("Li", time, (int)-reading->result);
	return Py_BuildValue("Ly#", time, data, (Py_ssize_t)reading->result);
}

static PyObject *drain(struct batch *self, PyObject *argument)
{
	Py_ssize_t number = PyLong_AsSsize_t(argument);
	struct slot *slot = PyErr_Occurred() ? NULL : slot_at(self, number);
	PyObject *list = slot ? PyList_New(0) : NULL;
	size_t at = 0;

	while (list && at < slot->used) {
		struct reading reading;
		PyObject *item;

		memcpy(&reading, slot->kept + at, sizeof(reading));
		at += sizeof(reading);
		item = item_of(&reading, slot->kept + at);
		at += reading.result > 0 ? (size_t)reading.result : 0;
		if (!item || PyList_Append(list, item) < 0)
			Py_CLEAR(list);
		Py_XDECREF(item);
	}
	if (list)
		slot->used = 0;
	return list;
}

static void batch_dealloc(struct batch *self)
{
	PyTypeObject *type = Py_TYPE(self);

	for (Py_ssize_t i = 0; i < self->slots; i++)
		PyMem_RawFree(self->slot[i].kept);
	PyMem_RawFree(self->slot);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyMethodDef batch_methods[] = {
	{ "add", (PyCFunction)add, METH_NOARGS, NULL },
	{ "set", (PyCFunction)set, METH_VARARGS, NULL },
	{ "take", (PyCFunction)take, METH_NOARGS, NULL },
	{ "wait", (PyCFunction)wait_for, METH_VARARGS, NULL },
	{ "drain", (PyCFunction)drain, METH_O, NULL },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot batch_slots[] = {
	{ Py_tp_dealloc, batch_dealloc },
	{ Py_tp_methods, batch_methods },
	{ 0, NULL },
};

static PyType_Spec batch_spec = {
	.name = "fabricctl.telemetry._batch.Batch",
	.basicsize = sizeof(struct batch),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = batch_slots,
};

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_batch",
	.m_size = 0,
};

PyMODINIT_FUNC PyInit__batch(void)
{
	PyObject *made = PyModule_Create(&module);
	PyObject *type = made ? PyType_FromSpec(&batch_spec) : NULL;

	if (!type || PyModule_AddObject(made, "Batch", type) < 0) {
		Py_XDECREF(type);
		Py_CLEAR(made);
	}
	return made;
}
