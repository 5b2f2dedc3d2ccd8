/* fabricctl.clock._engine: the probe engine as a Python object. What it takes and gives is typed
 * in fabricctl/clock/_engine.pyi and wrapped by fabricctl/clock/probing.py. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <string.h>

#include "engine.h"
#include "rails.h"
#include "siphash.h"

struct engine_object {
	PyObject_HEAD
	struct engine engine;
};

static PyObject *fail(int error)
{
	errno = -error;
	return PyErr_SetFromErrno(PyExc_OSError);
}

static int engine_object_init(struct engine_object *self, PyObject *args, PyObject *names)
{
	static char *words[] = { "me", "session", "key", "base_ns", NULL };
	const char *key;
	Py_ssize_t key_bytes;
	unsigned int me;
	unsigned long long session;
	long long base = 0;
	int result;

	if (self->engine.samples) {
		PyErr_SetString(PyExc_RuntimeError, "Engine is made already");
		return -1;
	}
	if (!PyArg_ParseTupleAndKeywords(args, names, "IKy#|L", words, &me, &session, &key, &key_bytes, &base))
		return -1;
	if (key_bytes != sizeof(self->engine.key) || session == 0) {
		PyErr_SetString(PyExc_ValueError, "key has 16 bytes, session is not 0");
		return -1;
	}
	self->engine.me = me;
	self->engine.session = session;
	self->engine.base_ns = base;
	memcpy(self->engine.key, key, sizeof(self->engine.key));
	result = engine_init(&self->engine);
	if (result < 0)
		fail(result);
	return result < 0 ? -1 : 0;
}

static void engine_object_dealloc(struct engine_object *self)
{
	PyTypeObject *type = Py_TYPE(self);

	if (self->engine.samples)
		engine_free(&self->engine);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyObject *add_rail(struct engine_object *self, PyObject *args)
{
	const char *address, *interface;
	unsigned short port;
	int result, phc_fd = -1;

	if (!PyArg_ParseTuple(args, "sHs|i", &address, &port, &interface, &phc_fd))
		return NULL;
	if (self->engine.running) {
		PyErr_SetString(PyExc_RuntimeError, "rails are added before the start");
		return NULL;
	}
	result = engine_add_rail(&self->engine, address, port, interface, phc_fd);
	return result < 0 ? fail(result) : PyLong_FromLong(self->engine.rail[result].port);
}

static int add_flow(struct engine *engine, PyObject *item)
{
	const char *address;
	unsigned int rail, peer;
	unsigned short port;
	int owner;

	if (!PyArg_ParseTuple(item, "IIsHp", &rail, &peer, &address, &port, &owner))
		return -1;
	return engine_add_flow(engine, rail, peer, address, port, owner);
}

static PyObject *set_flows(struct engine_object *self, PyObject *flows)
{
	struct engine *engine = &self->engine;
	PyObject *list = PySequence_Fast(flows, "flows: a sequence is wanted");
	int result = 0;

	if (!list)
		return NULL;
	pthread_mutex_lock(&engine->lock);
	for (unsigned i = 0; i < engine->flows; i++)
		engine->flow[i]->used = false;
	/* One that cannot be does not keep the others back. */
	for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list) && !PyErr_Occurred(); i++) {
		int one = add_flow(engine, PySequence_Fast_GET_ITEM(list, i));

		result = result ? result : one;
	}
	engine_drop_flows(engine);
	pthread_mutex_unlock(&engine->lock);
	Py_DECREF(list);
	if (PyErr_Occurred())
		return NULL;
	if (result < 0)
		return fail(result);
	Py_RETURN_NONE;
}

static PyObject *set_rate(struct engine_object *self, PyObject *argument)
{
	double pairs_per_s = PyFloat_AsDouble(argument);

	if (PyErr_Occurred())
		return NULL;
	if (!(pairs_per_s >= 0.1 && pairs_per_s <= 2000)) {
		PyErr_SetString(PyExc_ValueError, "rate: 0.1 to 2,000 pairs a second");
		return NULL;
	}
	pthread_mutex_lock(&self->engine.lock);
	self->engine.period_ns = (int64_t)(1e9 / pairs_per_s);
	pthread_mutex_unlock(&self->engine.lock);
	Py_RETURN_NONE;
}

static int read_doubles(PyObject *tuple, double *to, unsigned count)
{
	for (unsigned i = 0; i < count; i++) {
		PyObject *item = PySequence_GetItem(tuple, i);

		if (!item)
			return -1;
		to[i] = PyFloat_AsDouble(item);
		Py_DECREF(item);
		if (PyErr_Occurred())
			return -1;
	}
	return 0;
}

/* (begin_mono_ns, offset_ns, drift_ppb, [(amplitude, period, phase)], [(s, ns)]) */
static PyObject *set_virtual(struct engine_object *self, PyObject *args)
{
	struct virtual_clock given = { .used = true };
	long long begin, offset;
	PyObject *waves, *steps;
	double row[3];

	if (!PyArg_ParseTuple(
		    args, "LLdO!O!", &begin, &offset, &given.drift_ppb, &PyList_Type, &waves,
		    &PyList_Type, &steps
	    ))
		return NULL;
	if (PyList_GET_SIZE(waves) > VIRTUAL_TERMS || PyList_GET_SIZE(steps) > VIRTUAL_TERMS) {
		PyErr_SetString(PyExc_ValueError, "virtual clock: too many terms");
		return NULL;
	}
	given.begin_mono_ns = begin;
	given.offset_ns = offset;
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(waves); i++) {
		if (read_doubles(PyList_GET_ITEM(waves, i), row, 3))
			return NULL;
		given.amplitude_ns[i] = row[0];
		given.period_s[i] = row[1];
		given.phase[i] = row[2];
	}
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(steps); i++) {
		if (read_doubles(PyList_GET_ITEM(steps, i), row, 2))
			return NULL;
		given.step_s[i] = row[0];
		given.step_ns[i] = row[1];
	}
	given.waves = (unsigned)PyList_GET_SIZE(waves);
	given.steps = (unsigned)PyList_GET_SIZE(steps);
	pthread_mutex_lock(&self->engine.lock);
	self->engine.virtual = given;
	pthread_mutex_unlock(&self->engine.lock);
	Py_RETURN_NONE;
}

static PyObject *start(struct engine_object *self, PyObject *unused)
{
	int result = self->engine.running ? -EALREADY : engine_start(&self->engine);

	(void)unused;
	if (result < 0)
		return fail(result);
	Py_RETURN_NONE;
}

static PyObject *stop(struct engine_object *self, PyObject *unused)
{
	(void)unused;
	Py_BEGIN_ALLOW_THREADS
	engine_stop(&self->engine);
	Py_END_ALLOW_THREADS
	Py_RETURN_NONE;
}

static PyObject *take(struct engine_object *self, PyObject *unused)
{
	struct engine *engine = &self->engine;
	PyObject *bytes;

	(void)unused;
	pthread_mutex_lock(&engine->lock);
	bytes = PyBytes_FromStringAndSize(
		(const char *)engine->samples,
		(Py_ssize_t)(engine->sample_count * sizeof(*engine->samples))
	);
	if (bytes)
		engine->sample_count = 0;
	pthread_mutex_unlock(&engine->lock);
	return bytes;
}

static PyObject *counters(struct engine_object *self, PyObject *unused)
{
	struct engine *engine = &self->engine;
	PyObject *bytes;
	struct flow_counters *to;

	(void)unused;
	pthread_mutex_lock(&engine->lock);
	bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(engine->flows * sizeof(*to)));
	to = bytes ? (struct flow_counters *)PyBytes_AS_STRING(bytes) : NULL;
	for (unsigned i = 0; to && i < engine->flows; i++) {
		to[i] = engine->flow[i]->counters;
		to[i].tagless = engine->tagless;
	}
	pthread_mutex_unlock(&engine->lock);
	return bytes;
}

/* (source of the stamps, error of the NIC's in node time, how its clock is read); -1: no such clock. */
static PyObject *rail_state(const struct engine *engine, const struct rail *rail)
{
	const struct phc *phc = rail->phc < 0 ? NULL : &engine->phc[rail->phc];

	return Py_BuildValue(
		"iLi", rail->hardware ? STAMP_HARDWARE : (int)rail->transmit,
		phc ? (long long)phc->error_ns : -1LL, phc ? (int)phc->way : -1
	);
}

static PyObject *state(struct engine_object *self, PyObject *unused)
{
	struct engine *engine = &self->engine;
	PyObject *result, *rails = PyTuple_New(engine->rails);

	(void)unused;
	if (!rails)
		return NULL;
	/* (ticks that read what had come, tagless, samples lost, state by rail) */
	pthread_mutex_lock(&engine->lock);
	for (unsigned i = 0; i < engine->rails; i++)
		PyTuple_SET_ITEM(rails, i, rail_state(engine, &engine->rail[i]));
	result = Py_BuildValue(
		"KKKN", (unsigned long long)(engine->ticks - engine->unread_ticks),
		(unsigned long long)engine->tagless,
		(unsigned long long)engine->samples_lost, rails
	);
	pthread_mutex_unlock(&engine->lock);
	return result;
}

static PyObject *anchor(struct engine_object *self, PyObject *unused)
{
	struct anchor now = anchor_read();
	struct virtual_clock virtual;

	(void)unused;
	pthread_mutex_lock(&self->engine.lock);
	virtual = self->engine.virtual;
	pthread_mutex_unlock(&self->engine.lock);
	return Py_BuildValue(
		"LLLLL", (long long)now.raw_ns,
		(long long)(now.raw_ns + virtual_error_ns(&virtual, now.mono_ns) - self->engine.base_ns),
		(long long)now.real_ns, (long long)now.mono_ns, (long long)now.width_ns
	);
}

static PyObject *siphash(PyObject *module, PyObject *args)
{
	const char *key, *data;
	Py_ssize_t key_bytes, size;

	(void)module;
	if (!PyArg_ParseTuple(args, "y#y#", &key, &key_bytes, &data, &size))
		return NULL;
	if (key_bytes != 16) {
		PyErr_SetString(PyExc_ValueError, "key has 16 bytes");
		return NULL;
	}
	return PyLong_FromUnsignedLongLong(
		clock_siphash((const uint8_t *)key, (const uint8_t *)data, (size_t)size)
	);
}

static PyMethodDef engine_methods[] = {
	{ "add_rail", (PyCFunction)add_rail, METH_VARARGS, NULL },
	{ "set_flows", (PyCFunction)set_flows, METH_O, NULL },
	{ "set_rate", (PyCFunction)set_rate, METH_O, NULL },
	{ "set_virtual", (PyCFunction)set_virtual, METH_VARARGS, NULL },
	{ "start", (PyCFunction)start, METH_NOARGS, NULL },
	{ "stop", (PyCFunction)stop, METH_NOARGS, NULL },
	{ "take", (PyCFunction)take, METH_NOARGS, NULL },
	{ "counters", (PyCFunction)counters, METH_NOARGS, NULL },
	{ "state", (PyCFunction)state, METH_NOARGS, NULL },
	{ "anchor", (PyCFunction)anchor, METH_NOARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot engine_slots[] = {
	{ Py_tp_init, engine_object_init },
	{ Py_tp_dealloc, engine_object_dealloc },
	{ Py_tp_methods, engine_methods },
	{ Py_tp_new, PyType_GenericNew },
	{ 0, NULL },
};

static PyType_Spec engine_spec = {
	.name = "fabricctl.clock._engine.Engine",
	.basicsize = sizeof(struct engine_object),
	.flags = Py_TPFLAGS_DEFAULT,
	.slots = engine_slots,
};

static PyMethodDef functions[] = {
	{ "siphash", siphash, METH_VARARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static int fill(PyObject *module)
{
	PyObject *type = PyType_FromSpec(&engine_spec);

	if (!type || PyModule_AddObject(module, "Engine", type) < 0) {
		Py_XDECREF(type);
		return -1;
	}
	if (PyModule_AddIntConstant(module, "SAMPLE_BYTES", sizeof(struct sample))
	    || PyModule_AddIntConstant(module, "COUNTERS_BYTES", sizeof(struct flow_counters))
	    || PyModule_AddIntConstant(module, "PROBE_BYTES", PROBE_BYTES))
		return -1;
	return 0;
}

static PyModuleDef_Slot module_slots[] = {
	{ Py_mod_exec, fill },
	{ 0, NULL },
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_engine",
	.m_methods = functions,
	.m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__engine(void)
{
	return PyModuleDef_Init(&definition);
}
