/* fabricctl.clock._page: reading and writing the clock page; typed in _page.pyi. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <structseq.h>

#include "page.h"

static PyTypeObject reading_type;

static PyStructSequence_Field reading_fields[] = {
	{ "time_ns", "Job time." },
	{ "earliest_ns", "Job time is certainly not before this." },
	{ "latest_ns", "Job time is certainly not after this." },
	{ "likely_ns", "Job time is within time_ns -+ this in 99.9 % of readings." },
	{ "status", "1: synchronised, 2: holding over." },
	{ NULL, NULL },
};

static PyStructSequence_Desc reading_description = {
	"fabricctl.clock.Reading", "One reading of the job clock.", reading_fields, 5
};

static int get_page(PyObject *object, Py_buffer *buffer, int flags)
{
	if (PyObject_GetBuffer(object, buffer, flags) < 0)
		return -1;
	if (buffer->len >= (Py_ssize_t)sizeof(struct page))
		return 0;
	PyBuffer_Release(buffer);
	PyErr_SetString(PyExc_ValueError, "too small for a clock page");
	return -1;
}

static PyObject *read_page(PyObject *object, int64_t raw_ns)
{
	struct fabric_clock_reading r;
	PyObject *result;
	Py_buffer buffer;
	int failed;

	if (get_page(object, &buffer, PyBUF_SIMPLE) < 0)
		return NULL;
	failed = page_read(buffer.buf, raw_ns, &r);
	PyBuffer_Release(&buffer);
	if (failed)
		Py_RETURN_NONE;
	result = PyStructSequence_New(&reading_type);
	if (!result)
		return NULL;
	PyStructSequence_SET_ITEM(result, 0, PyLong_FromLongLong(r.time_ns));
	PyStructSequence_SET_ITEM(result, 1, PyLong_FromLongLong(r.earliest_ns));
	PyStructSequence_SET_ITEM(result, 2, PyLong_FromLongLong(r.latest_ns));
	PyStructSequence_SET_ITEM(result, 3, PyLong_FromLongLong(r.likely_ns));
	PyStructSequence_SET_ITEM(result, 4, PyLong_FromLong(r.status));
	if (PyErr_Occurred()) {
		Py_DECREF(result);
		return NULL;
	}
	return result;
}

/* now(page) -> Reading, or None while there is no job time. */
static PyObject *now(PyObject *module, PyObject *object)
{
	(void)module;
	return read_page(object, 0);
}

/* at(page, raw_ns) -> Reading: what now() said, or will say, at an instant near this one. */
static PyObject *at(PyObject *module, PyObject *args)
{
	PyObject *object;
	long long raw_ns;

	(void)module;
	if (!PyArg_ParseTuple(args, "OL", &object, &raw_ns))
		return NULL;
	return read_page(object, raw_ns);
}

/* begin(page): the head of an empty page. */
static PyObject *begin(PyObject *module, PyObject *object)
{
	Py_buffer buffer;
	struct page *page;

	(void)module;
	if (get_page(object, &buffer, PyBUF_WRITABLE) < 0)
		return NULL;
	page = buffer.buf;
	memset(page, 0, sizeof(*page));
	page->bytes = sizeof(*page);
	page->version = PAGE_VERSION;
	atomic_thread_fence(memory_order_release);
	page->magic = PAGE_MAGIC;
	PyBuffer_Release(&buffer);
	Py_RETURN_NONE;
}

/* write(page, body) */
static PyObject *write_body(PyObject *module, PyObject *args)
{
	PyObject *object;
	Py_buffer buffer;
	const char *body;
	Py_ssize_t size;

	(void)module;
	if (!PyArg_ParseTuple(args, "Oy#", &object, &body, &size))
		return NULL;
	if (size != sizeof(struct page_body)) {
		PyErr_SetString(PyExc_ValueError, "body of the wrong size");
		return NULL;
	}
	if (get_page(object, &buffer, PyBUF_WRITABLE) < 0)
		return NULL;
	page_write(buffer.buf, (const struct page_body *)body);
	PyBuffer_Release(&buffer);
	Py_RETURN_NONE;
}

static uint64_t tsc(void)
{
#if defined(__x86_64__)
	return __builtin_ia32_rdtsc();
#else
	return 0;
#endif
}

/* instant() -> (raw, mono, real, tsc, width): read back to back, the narrowest of four tries. */
static PyObject *instant(PyObject *module, PyObject *unused)
{
	struct page_row best = { 0 };
	int64_t width = INT64_MAX;

	(void)module;
	(void)unused;
	for (int i = 0; i < 4; i++) {
		int64_t before = page_clock_ns(CLOCK_MONOTONIC_RAW);
		int64_t mono = page_clock_ns(CLOCK_MONOTONIC);
		uint64_t ticks = tsc();
		int64_t real = page_clock_ns(CLOCK_REALTIME);
		int64_t after = page_clock_ns(CLOCK_MONOTONIC_RAW);
		int64_t step = (after - before) / 4; /* four reads of a clock, evenly apart */

		if (after - before >= width)
			continue;
		width = after - before;
		best = (struct page_row){
			.raw_ns = before + 2 * step,
			.mono_ns = mono + step,
			.real_ns = real - step,
			.tsc = ticks,
		};
	}
	return Py_BuildValue(
		"LLLKL", (long long)best.raw_ns, (long long)best.mono_ns, (long long)best.real_ns,
		(unsigned long long)best.tsc, (long long)width
	);
}

static PyMethodDef functions[] = {
	{ "now", now, METH_O, NULL },
	{ "at", at, METH_VARARGS, NULL },
	{ "begin", begin, METH_O, NULL },
	{ "write", write_body, METH_VARARGS, NULL },
	{ "instant", instant, METH_NOARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_page",
	.m_size = -1,
	.m_methods = functions,
};

PyMODINIT_FUNC PyInit__page(void)
{
	PyObject *module = PyModule_Create(&definition);

	if (!module)
		return NULL;
	if (PyStructSequence_InitType2(&reading_type, &reading_description) < 0)
		return NULL;
	Py_INCREF(&reading_type);
	if (PyModule_AddObject(module, "Reading", (PyObject *)&reading_type)
	    || PyModule_AddIntConstant(module, "PAGE_BYTES", sizeof(struct page))
	    || PyModule_AddIntConstant(module, "BODY_BYTES", sizeof(struct page_body))
	    || PyModule_AddIntConstant(module, "BODY_OFFSET", offsetof(struct page, body))
	    || PyModule_AddIntConstant(module, "ROWS_OFFSET", offsetof(struct page, row))
	    || PyModule_AddIntConstant(module, "ROWS", PAGE_ROWS))
		return NULL;
	return module;
}
